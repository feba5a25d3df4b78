"""A dependency-free upper bound on OpenAI token counts, for machines without the ranks.

`estimate_tokens` is used when `tiktoken` or its rank files cannot be had. It never counts less than
``o200k_base`` or ``cl100k_base`` would.

Why it is a bound. Byte pair encoding stops when no two neighbouring tokens can be merged. Where two
neighbouring bytes form a token, both cannot be left as tokens of their own. So a run of ``m`` bytes
in which every neighbouring pair is a token of both vocabularies yields at most ``(2m + 1) // 3``
tokens, and ``(2m + 2) // 3`` wherever the pre-tokenizer's expression or another token may cut it. The
table below holds the pairs that are tokens of both vocabularies: printable ASCII, and the bytes inside
a UTF-8 character. The cuts made here (case changes, digits, punctuation, white space, non-ASCII) are at
least as fine as those of both expressions; ``1 + 2j // 80`` bounds ``j`` spaces because 1 to 79 spaces
are one token each; ASCII digits are tokens in groups of up to three; a thousand frequent words are one
token when they stand alone after a space; any other byte is one token at most.

Proven by that argument, on paper, and checked against both vocabularies in the tests: the table and
the digits exhaustively, the bound itself on samples and on Hypothesis text. Only measured: how far
above the truth it lies (estimate divided by the true count, on the samples of the tests):

=============  ==========  ===========  ===================
sample         o200k_base  cl100k_base  bytes / o200k_base
=============  ==========  ===========  ===================
English              2.54         2.46                 4.71
Python               2.42         2.43                 4.09
JSON                 1.80         1.80                 2.28
base64               1.31         1.24                 1.48
hexadecimal          1.15         1.15                 1.78
Chinese              3.65         2.35                 5.40
Japanese             3.05         2.10                 4.50
Russian              3.50         1.80                 6.39
Arabic               2.81         1.34                 5.02
Thai                 4.38         1.90                 6.55
Hindi                6.34         1.78                 9.21
emoji                1.73         1.06                 2.40
=============  ==========  ===========  ===================

The last column is what the plain bound, the number of UTF-8 bytes, would give.

Example:
    >>> estimate_tokens("hello world"), estimate_tokens("12345678"), estimate_tokens("")
    (5, 3, 0)
"""

from __future__ import annotations

import base64
import re
import zlib
from functools import lru_cache
from itertools import pairwise

# Pairs that are single tokens in o200k_base and in cl100k_base, as bits: 95 x 95 printable ASCII,
# then 51 lead bytes (0xC2..0xF4) x 64 continuation bytes, then 64 x 64 continuation bytes.
# tests/core/test_token_estimate.py derives it again from the ranks.
_PAIRS_B85 = (
    "c-ozle@G-{7{{M?W^*^wb5<6AoY}s2$lY-l=*3ZRl{=c1#7S^?P$cO6umb5Xi@UgEXOt*0P>_nCV$DBd2|-"
    "BcjG&pk0|O7EKPvB^n>h~r!CvlY;%>O^(>w31GivMQ`LOT2&%X1_XP)Q#Jc9@sbWFL?1!n=^akc;>a6Q>}WT{DLoDr*3`=~("
    "zi3E#fpa6@V_-Wl&qWlj5by9jEKwALP>bpX}8WpY}Nx%2zN$Z`t_gk|`_>!Rww%SpFC<JIGygXX{`}1&HI9Tva%D|rPuzHgK"
    "Ox+vnHnBurX0eNG4Qqb*o9(MCvowlUHkV}@$%5@{AjVjpB5az9#PxM_T`(2Tw<4aO4tsv4#PhR$&(Du%;{0W_y_7{I)f;^R?"
    "3l@)@nTJNAtYH=3#UGdS+)LQRHtt-ag}95v~ZzwwGHUplk*T~oH`$T4<Y8TUxi8o4i-"
    "^d!mP+&rl1<H`Iy(DXo~*UP$#bijY!AgUwBrQfwku3dKIrFnL4o0JnrMQ%&+^;)V%K0vX1`4y@v{Nc;Q%PfY&nERjvkTVGjR"
    ">e5p_7_%Y)sJyLX(;}OGF@P3fvF%_O2_^ycKQ|n@U?X-"
    "i(4RPd)=Xg5h6HHH1;YbxlwYlRJrxS>BC;q|lnxW9~*?NxuGf_o9PdJ@OTqb?-"
    "k${7LR%|M$<dsC9sum@|(fnNcj2M(9j(@H0E@@`_^)l5o#=7ijXsA3O6Jba_@4s12(QmRI>MSjte89Wb!LIb}B)O7tCMUus-"
    "L9sNKm~Q%if+4Y{fRqE=uVT#+Ud@cjoF-"
    "~B)SvC^mlz*|9p7E3)fL=_wdG6ygQ(_{w^N3;L*d!elWaI&F0Tu+lo&{w&1<&@v4iAu2j3ev2n-"
    "CKDyLX7E*2D1UY!<<y?>KSAHGyn~bFwgRB!>P&XeZ1bnsv+1Q2YPnd|2Z|P(G5D+0m3;U1v39WXJ0NxkOtT4ATI)$AkLLRez"
    "(y-KVeV}a^!}e%2!o%5*XCJYvW}_Bo@@A*F1pM=WUgvzTX8nrKJj%piZqa3NrQ1HM-"
    "5!DoygH$oA7K@);Ry@Fr8iF2ui?|z1~nqg%%eFdWg@Q%(CmbdiKj*@^~8rQ<XVxb{01)y2Saq56h3ELW@{MsYZBzXx;(=F*T"
    "}waZjY4yC#MIRZ%5p&;Q`O3><@WxwmUJZ5B59*WWP%6@|2Y4Cdqp<uy+Cf1;u%?mH"
)
# The 1,000 lower-case words of three letters or more that, with the space before them, are one token in
# both vocabularies and rank first (a pre-token found in the vocabulary is never split).
_WORDS_B85 = (
    "c-l3XTY{^)4n(KI)Cf4i-"
    "GDi^37tFoyOzlQsFLyfA;~i1V@<>OC})@7q^C)wqlaisQO@1ZTH@1W&t(tsmd|lrKf^fBA_doII#c|7f}ZLyzQ(-Y-"
    "00)QV6QTanUZxC<$}xpf@>OQdR!Y7Rw}R8_@Te;p2<E^f1gDySxK8cZx93Qr7sS*w=0AVKB6z#ipL?6wC3q6#(PDiKXPT<n#2gb1"
    "jAQ`XS7<yNX1Iu?H4qW;<J@0BR)G_cQQ`a@AjU3DOFK|nCyGZ>lg=cjk(L8;W19X&<rYQA_b9^?C6oE@iZ?@Wm8y?cIa8E-"
    "!GBPSb$4@q*buLkEpn(C*15S;OQW)=q6L2**w;m$y#nEvv4AhQhud1D2>!-x1qn`!Cp~TV?g%r(J4Ih%Jj}A@~%!iT*BFVvGg-"
    "c9OdNsODts?Src?XJ5W|(QMITE6Mb5SDcLk}#*@1*sbtflN(3iG4MJ0sDYFvGnigjlT$7E;Fy+pi))8HTneG&elxc~c{K_%jT3Qg"
    "jm04QFnr_=5$!Wvq=Eo);L!6k@<jCAqWMy=UjK<q`?lG0(PC(=S6?a~Wy2qNn;@@Y#Gs^z$?Kl;-"
    "MIE6ze`mKpgE(x&&ZLzsD9`Q^i4xswtnf|aU9qR{clx_!-"
    "oN6ECcVaPpes{3oUt87Kc{flF{R;lEWy=UXAO!ieLD#c9JT5<e?QccDxG+S$u?)LF`=_*R}*WV#|^Ncc@$>!QA(03I%90JPGwH0;"
    "G7;{0#7m8^_<L)J)INXp(1lS26typwrlxiR<mjVdp7?qFt_8MjI$-3C%VF4%~|;rPkRdybvTbXSC3=PO-"
    "w;&i;rV<(%AuVymOh(yXWF`O00_Y&m1sdh{C?l<<!N@<=TVRf^(VccnvdWHJ@RxX~dRLahzXb!vG2GA<gGB=oS)g95^#v3J4#Y*2"
    "q{>%p<LwT-"
    "w+L_*e^lpmhoT#^c~blOydvkzdXiBXU5|aMv)?f9H_!t$=wamae~Wds8R<b{6lbu5L)5n{U6K{>Ctf^fw7_u=M9%rN2YOOhceMCh"
    "E;t^JJ@ImEzt~s{u2QbRCE1IEf^62(JS*zc-QDxhF2-"
    "Ilh_u6D>XIi3B?IOxN(t38mNEp6m`tK~1Iub`*@3>{hEx`^ibcCGN#rxXh=f_$-BLj-"
    "<<nwxFo*74_7Vo)*<4W#K_QD+&VH$LS)lLNEn|Yj{Tc)A<iCow3x07rX!R7~w9$h+dhHL85Ri4;JtWHGDb0SD|9qaq#{Xp(-"
    "zX56gaWsUGq*EaL;rV84l7TD-0$hR}~M-UJIex{Pm2-wwAVTVcmsMN7)Br6X3_F*cwcdC&%$=mp(b3P-"
    "ZAAB$djDTl<yFGb*n<Yp#Qt2l<G_algsa}#)Fyrp1Gc{8TTIBZaA|B5k+j3_eu4Ayi0iu9GPfmHR|vN`?9*m!WB39v{$MG4}-"
    "Z*j*hnad(5M@79pLDmp~mZZLhRMoQ+3X2O)?fV(}9Vt8P4&(&hcZD||J!2bMRPOjgiO=4KA0nBczu~7mhM&fae(=S^Z^B>xrqA%}"
    "x_);yQrZW?9t>mkoL9puDZx#2$l0y<sMVA8^4(>N(o>>IGHZWv<l51y-"
    "FgqMy4+#S5AdYV(1tbt3O_fI&D#CkEwJC*`)USS6)uv%N3frA?6Of%#HXt_o0Q{&fl-"
    ";YMAK{7Mh+HT0NC|5{$Quu_?v>7Y%_Id^E%&%akkMa^*4w`Y=$11^A=Ig=6-"
    "mz8(X|_2W$o<61DJVAdj#uIT`Rs)gmj=Gkc?IZc$DcN{iSQ+}0Z8>b4xPY(Kjb^|;-t%?8EmaKl=F+HRZzI9!-"
    "R2&TS^)hTV7(pJP<kaM~eZ`O@~5D<KCs>!aK*^RIWL_Ehmu_(#p3v_W6HfRs$zvEJY#klG{7PI46cO$W#nehe~RJUCxw_~h;JsHa"
    "5M|c;M2jI0+xY<hF!-"
    "Z$cKIj#ScH$LU_Rtf=XDIrh;=NJ0TY$TEi#C*MTu{(uz~PjdU*Xa3$4D@>aLc~6fHoS=QL1_o4dXEAK0K_0?EquYCcEp0PY#K_yG"
    "1^}iF1t>P29wW%_eLSSfI~vq~bm4LO=x1$hg{-`WCN64jrK_--5Lqi+ghDAP+;~gE)qmWD4Gg2u~z?)?Cf!sE?w{3HD<Z*$k$Rx`"
    "eMhibd@XPY)lOQZ{rs)TF~P-M*vvsyhtk;Us3M1;t|G4u{{lIC?egf}<$EjREz>;1RT@uh^8+-MGx>%`r^K$bJS<C+1npD-"
    "NfYP^rV)6*_`=i+oJn<MnTaeg`0=-a&c(iu6yCLCEF-"
    "yWF#4H7d)0UILQug8zu!K#f%EH#?<&iAKsJs__K!IW4V0=rY2SCDIfr2-jz&c$g@vUx9P*`m2~Cz*}+vHQCoX-ec8dldy8sbdK^v"
    "c(jP`$<%buR!NlmPdbKuG+Y3SC2`!HhO}C=X}XSESZJCk#YMa`{-A~z2&UM#OD!A+L@utN66&;(?QU#C)8#Znh=$HK-vN!Gfp6RI"
    "MB2ScE%|UlB(X_mzCeV(h$m!0RNKv}BC{;SJLt}eH^5g~cq>v%wz;doPLL3wExvf$BHT#Wr&BW^@s&2j14PPC)TME^0d1SNwwNOI"
    "ii|Ey{14g;2>emuNVvT#26E->STh`wG<M}3U&mI&G<d{;YVXGw9GHTlOJz){g6=gB+f+{R6(3Fr&QYsltO$;yTf-uh2yJ$*y_oc3"
    "xr4XXtB8s5+PsCv+WI*MCB2OaD}UUB^C7}g+j;-oYTikW`=Jqp0#D#PLT%e=+5w%{mA#1Dry2V6_-"
    "oU>(+RD9p=wmz{TI}^qI<ljV5;(r+F{lZEqNFX-ZI({*n%32ipOiZ6ZlG|lE_uwBnu2@;THTE?z0JQA%10(C91?b>lXIta{&J4Y8"
    "JuN&m6jB(nzQmU&y_%FfXv~wb)A$zY^==NIJ#^ICEY}xEpwuFyHP(BgE%mOwya?$~`{x&mq!q>XpxZ9DH@0;W>hDr8!Z+b4LM&^N"
    "6?mSxK_4)8ApIRwlK<pG&XdwB~yZVCOL71~<eGs>p+e_O_j*{l#1IO$?>~EkpQ|H@gThoVWiNjep-"
    "(WySHk?(*a>qkF6eG@y=L5xn{@?@A95c6X&jZPnn?L3oE<9_8gpUmoqX+~4<pUrV;H#h2p6L;PCkFV9@zm-"
    "fI@Q1GBfM5bpS!uaAcMuP=zJR&E_T~aoAwLph*RhLs^ny{5VMq^Tg`|!c!fdv@;{{gLtG}Q"
)
_ASCII, _LEAD, _CONT = 95, 51, 64
# The only tokens of two bytes that join the end of one character to the start of the next.
_JOINING_PAIRS = (b"\xa0\xed", b"\xa1\xd5", b"\xa4\xed")
_SPACES = 80  # runs of up to 79 spaces are one token
_CACHED_SPAN = 32  # characters; longer spans are rare and would make the cache heavy

_SPAN = re.compile(
    r"(?P<spaces> +(?= ))"  # all but the last space, which belongs to what follows
    r"|(?P<word> [a-z]{3,}+(?![A-Za-z'\x80-\U0010ffff]))"  # a pre-token for certain, space included
    r"|(?P<span> ?(?:[A-Z]*[a-z]+|[A-Z]+|[!-&(-.:-@\[-`{-~]+))"  # not ' and /: expressions cut after them
    r"|(?P<digits>[0-9]+)"
    r"|(?P<wide>[^\x00-\x7f]+)"
    r"|(?P<one>[\x00-\x7f])"
)


@lru_cache(maxsize=1)
def _pair_bits() -> tuple[int, int, int]:
    """The three bit sets of the table."""
    raw = int.from_bytes(zlib.decompress(base64.b85decode(_PAIRS_B85)), "little")
    sizes = (_ASCII * _ASCII, _LEAD * _CONT, _CONT * _CONT)
    bits = []
    for size in sizes:
        width = (size + 7) // 8 * 8
        bits.append(raw & ((1 << width) - 1))
        raw >>= width
    return bits[0], bits[1], bits[2]


@lru_cache(maxsize=1)
def _whole_words() -> frozenset[str]:
    """Words, each with the space before it."""
    words = zlib.decompress(base64.b85decode(_WORDS_B85)).decode().split()
    return frozenset(f" {word}" for word in words)


@lru_cache(maxsize=1)
def _ascii_pairs() -> frozenset[str]:
    bits = _pair_bits()[0]
    return frozenset(
        chr(32 + index // _ASCII) + chr(32 + index % _ASCII) for index in range(_ASCII * _ASCII) if bits >> index & 1
    )


def _span_tokens(span: str) -> int:
    """Bound for a span of printable ASCII: runs of mergeable pairs, ``(2m + 2) // 3`` each."""
    pairs = _ascii_pairs()
    total, run = 0, 1
    for index in range(1, len(span)):
        if span[index - 1 : index + 1] in pairs:
            run += 1
        else:
            total += (2 * run + 2) // 3
            run = 1
    return total + (2 * run + 2) // 3


_cached_span_tokens = lru_cache(maxsize=16_384)(_span_tokens)


@lru_cache(maxsize=16_384)
def _wide_tokens(char: str) -> int:
    """Bound for one non-ASCII character: its bytes, less one when two of them always merge."""
    data = char.encode("utf-8", "surrogatepass")
    _, lead, cont = _pair_bits()
    merges = bool(lead >> ((data[0] - 0xC2) * _CONT + data[1] - 0x80) & 1) or any(
        cont >> ((first - 0x80) * _CONT + second - 0x80) & 1 for first, second in pairwise(data[1:])
    )
    # A lone surrogate is replaced by U+FFFD before encoding: three bytes, whatever the table says.
    return 3 if "\ud800" <= char <= "\udfff" else len(data) - merges


def _joined(chars: str) -> int:
    """Neighbouring characters whose touching bytes are a token: one more token is possible there."""
    data = chars.encode("utf-8", "replace")
    return sum(data.count(pair) for pair in _JOINING_PAIRS)


def estimate_tokens(text: str) -> int:
    """Upper bound of the tokens of `text` in ``o200k_base`` and ``cl100k_base``; see the module.

    Args:
        text: Any text; lone surrogates are counted as the replacement character.

    Returns:
        Tokens, at least the true count, at most the number of UTF-8 bytes plus a few.

    Example:
        >>> estimate_tokens("def f(x): return x"), len("def f(x): return x")
        (11, 18)
    """
    total, wide_before, words = 0, False, _whole_words()
    for match in _SPAN.finditer(text):
        kind, span = match.lastgroup, match.group()
        if kind == "word" and span in words:
            total += 1
        elif kind in ("span", "word"):
            total += _cached_span_tokens(span) if len(span) <= _CACHED_SPAN else _span_tokens(span)
        elif kind == "digits":
            # Groups of three start anew after a non-ASCII digit, which we do not tell from a letter.
            total += (len(span) + 2) // 3 + wide_before
        elif kind == "spaces":
            total += 1 + 2 * len(span) // _SPACES
        elif kind == "wide":
            total += sum(map(_wide_tokens, span)) + _joined(span)
        else:
            total += 1
        wide_before = kind == "wide"
    return total


__all__ = ["estimate_tokens"]
