"""What a log says, for people: a page for the browser (`brix report`) and lines for the terminal (`brix traces`).

`calls` reads an entry whatever is in it, `figures` says what each number means, `columns` packs the calls for the page,
`making` puts the page together from the sources in the folder ``page``.
"""
