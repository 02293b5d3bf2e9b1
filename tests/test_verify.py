"""What the verifier accepts and refuses, kind by kind, and where it looks for the answer."""

import json
import string
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

import algebra
import verify
from verify import Group, Scalar, extract, grade, read

ACCEPTED = r"""
8 <- 8.0 | 5 <- 05   5\\   \$5   5 dollars   x=5   5=x   ５   $5$   \[5\]   5, | -5 <- −5
1000 <- 1{,}000   1,\!000   1_000 | 1000000 <- 10^6   1e6   1\times10^6   1,000,000
1/2 <- \frac12   .5   2/4 | 3/2 <- 1\frac12   1 1/2   1½   6/4 | -3/2 <- -1\frac{1}{2} | 50 <- 50%
50\% <- 50   0.5   1/2 | \$5 <- 5 dollars | 90 <- 90^\circ   90 degrees   90° | \sqrt8 <- 2\sqrt2
\frac{\sqrt{3}}{3} <- \frac1{\sqrt3} | \frac{\pi}{6} <- pi/6 | x=5 <- 5
\{1,2\} <- \{2,1\}   1,2   2 and 1 | [1,2) <- 1\le x<2 | x\in[1,2) <- [1,2)   1 \leq x < 2
\pm2 <- 2,-2 | \{2,-2\} <- \pm2
\begin{pmatrix}1&2\\3&4\end{pmatrix} <- \begin{bmatrix}1&2\\3&4\end{bmatrix} | \text{Yes} <- yes
A <- (A)   \text{(A)} | C <- \mathrm{C}   (C) 58
1/3 <- 0.\overline3   0.\overline{3}   0.\bar{3}   0.(3)   0.3333 | 1/6 <- 0.1\overline{6}
1/7 <- 0.\overline{142857} | 1+2i <- i(2-i) | x+1 <- 1+x | \infty <- ∞   infinity   +\infty
B <- Option B   B) | D <- choice (D) | circle <- A circle | 5\sqrt{2} <- 5\sqrt{2} \text{ units}
\frac{\sqrt6-\sqrt2}{4} <- \frac{1}{\sqrt6+\sqrt2}
\frac{-1+i\sqrt3}{2} <- -\frac12+\frac{\sqrt3}{2}i | 3,4,5 <- 3, 4, \text{ and } 5
e^{2x} <- (e^x)^2 | |x-1| <- |1-x| | \frac{1}{n(n+1)} <- \frac1n-\frac1{n+1}
3x-2y=5 <- y=\frac{3x-5}{2} | \frac{10!}{3!7!} <- 120 | x<-1 or x>1 <- (-\infty,-1)\cup(1,\infty)
(3,4) <- x=3, y=4 | \sqrt{2}+\sqrt{3} <- \sqrt{5+2\sqrt6} | no solution <- \text{No solution}
(x+2)/7 <- x/7 + 2/7 | 2^{10} <- 1024 | 4! <- 24 | 10\text{ cm}^2 <- 10
10 <- 10 cm^2   10 \mathrm{~cm}   10\,\text{m/s} | 10 cm^2 <- 10 square centimeters
10\text{ cm} <- 10 cm | 12 <- 12 apples   3\cdot4 | x^2 <- x²   x**2 | x^{10} <- x¹⁰ | 1/4 <- ¼
3.5 <- 3½ | x^2+2x+1 <- (x+1)^2 | (1,2) <- \left(1,2\right) | (\frac12,3) <- (0.5,3)
(-\infty,9] <- (-\infty, 9] | (-\infty,1)\cup(2,\infty) <- (2,\infty)\cup(-\infty,1)   x<1 or x>2
[5,\infty) <- x\ge5 | x>5 <- 5<x | (-\infty,5) <- x<5 | \emptyset <- \varnothing | x=1,x=2 <- 1,2
1,2 <- x=1 or x=2   x_1=1, x_2=2 | x=1,y=2 <- 1,2   (1,2)   y=2,x=1 | (x,y)=(1,2) <- (1,2)
\frac{1}{\sqrt2-1} <- 1+\sqrt2 | 2\sqrt[3]{2} <- \sqrt[3]{16} | \sqrt[3]{-8} <- -2 | 8^{2/3} <- 4
\frac{2}{\sqrt[3]{2}} <- \sqrt[3]{4} | 2\pi <- \pi\cdot2 | 4\pi/3 <- \frac43\pi | e^{-1} <- 1/e
\sqrt{-4} <- 2i | 1.5\times10^3 <- 1500 | 1.5 \cdot 10^{-3} <- 0.0015 | 0.5\% <- 0.005
\binom{5}{2} <- 10 | |x| <- \left|x\right|   \sqrt{x^2} | |-5| <- 5 | a:b=1:2 <- 1:2
12:30 <- 12:30 PM | 19:15 <- 7:15 p.m. | five <- 5 | \text{five} <- 5
3.5 \text{ million} <- 3500000 | 3500000 <- 3.5 million | 31_4 <- 31_{4}   31
58 <- (C) 58   \text{(C) }58   \textbf{(C)}\ 58 | The answer is 58 <- 58 | \sin x <- \sin(x)
2\sin x\cos x <- 2\cos x\sin x   \sin 2x | \frac{1}{\cos x} <- \sec x | 2^{n+1}-1 <- 2\cdot 2^n-1
\frac{n(n+1)}{2} <- \frac{n^2+n}{2} | x^2+y^2=1 <- 1-x^2-y^2=0
y=2x+1 <- 2x-y+1=0   f(x)=2x+1   2x+1 | (1,2),(3,4) <- (3,4),(1,2) | \{(1,2),(3,4)\} <- (1,2),(3,4)
1,2,3 <- 1, 2 and 3   3;2;1   \{1,2,3\} | 14.29 <- 100/7 | 3.14 <- \pi | 0.33 <- 1/3
\frac{100}{7} <- 14.2857 | 60^\circ <- \frac{\pi}{3} | \pi/3 <- 60^\circ
\frac{\pi}{3} <- \frac{\pi}{3}\text{ radians} | \frac{1}{2} <- \dfrac{1}{2}   \sin\frac{\pi}{6}
7 <- \boxed{7} | 2\frac34 <- 2.75 | -\frac{1}{2} <- \frac{-1}{2}   \frac{1}{-2}
\frac{3}{4} <- 3\div4 | x\ne5 <- (-\infty,5)\cup(5,\infty) | f'(x) <- f'(x)
n\text{ is even} <- n is even | \frac{1}{x+1}-\frac{1}{x} <- -\frac{1}{x(x+1)}
(x-1)(x^2+x+1) <- x^3-1 | \frac{x^2-1}{x-1} <- x+1 | \langle1,2\rangle <- (1,2)
2k\pi, k\in\mathbb{Z} <- 2\pi k | \{x|x>2\} <- \{x|x>2\} | 100 <- 100.00   100. | 1.0 <- 1 | 5. <- 5
f(x)=x^2 <- x^2 | \angle ABC=30^\circ <- 30 | A_{\max}=4 <- 4 | \sqrt{5} <- √5   sqrt(5)
2√3 <- 2\sqrt3 | \text{3 hours} <- 3 | 3 <- 3\ \text{hours}   \log_2 8 | 40 <- \text{40 mph}
25^\circ\text{C} <- 25 | \$1,234.50 <- 1234.5 | €5 <- 5 | \text{A and B} <- A and B
\begin{array}{cc}1&2\\3&4\end{array} <- \begin{pmatrix}1&2\\3&4\end{pmatrix} | 0 <- -0   0.0
10^{-3} <- 0.001   10^-3 | 6.02\times10^{23} <- 6.02e23 | \left\{1,2\right\} <- {1,2} | 2.718 <- e
(\sqrt2+1)^2 <- 3+2\sqrt2 | \sqrt{3+2\sqrt2} <- 1+\sqrt2 | \sqrt{\sqrt{16}} <- 2 | (1+i)^2 <- 2i
\frac{1}{i} <- -i | \alpha+\beta <- \beta+\alpha | (-\infty,\infty) <- (-\infty, +\infty)
7\frac{1}{2}\% <- 7.5% | -1 <- e^{i\pi} | \frac{\pi}{4} <- \arctan 1 | \frac12 <- \sin 30^\circ
\tan^{-1} 1 <- \pi/4 | 2\ln 3 <- \ln 9 | \frac{\ln 3}{\ln 2} <- \log_2 3 | \log_4 9 <- \log_2 3
\lg 1000 <- 3 | e^{3\ln 2} <- 8 | \exp(2) <- e^2 | \cosh 0 <- 1 | \frac{e-e^{-1}}{2} <- \sinh 1
\cos 2x <- 2\cos^2 x-1 | \tan x <- \frac{\sin x}{\cos x} | (n+1)! <- (n+1)\,n!
\binom{n}{2} <- \frac{n(n-1)}{2} | \binom{n}{k} <- \frac{n!}{k!(n-k)!} | \frac{abc}{4R} <- abc/(4R)
{n \choose 2} <- \frac{n^2-n}{2} | \csc x\coth x <- \frac{1}{\sin x\tanh x} | 1+xyz <- xyz + 1
3e8 <- 3\times10^{8}\text{ m/s} | 3000000 <- 3\text{ million dollars}
\lfloor n/2 \rfloor + 1 <- 1+\lfloor\frac{n}{2}\rfloor | \lfloor x+1 \rfloor <- \lfloor x\rfloor+1
|xy| <- |x||y| | \lceil 2.5 \rceil <- 3 | \lfloor -\frac52 \rfloor <- -3 | \max(2,7) <- 7
\sqrt{1/n} <- \frac{1}{\sqrt n} | \sqrt[3]{x^2} <- x^{2/3}
\frac{\sqrt[3]{4}}{2} <- \frac{1}{\sqrt[3]{2}} | \sqrt{7-4\sqrt3} <- 2-\sqrt3
\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5} <- 1 | \cos\frac{\pi}{5} <- \frac{1+\sqrt5}{4}
e^{i\pi/3} <- \frac{1}{2}+\frac{\sqrt3}{2}i
\sqrt{\frac{1+\cos x}{2}}\sqrt{\frac{1+\cos x}{2}} <- \cos^2\frac{x}{2} | -120 <- 3\cdot5\cdot-8
3-2i <- 3 + -2i | -984 <- {-}984 | 3:30 <- 3{:}30 | 16:30 <- \text{4:30 p.m.}
\frac{a}{b} <- \frac a b | 20 <- 4[2+3] | 18 <- 18\text{ ways.} | 25 <- 25^\circ C
x<5 <- (-\infty,5) | (2,\infty) <- \{x \mid x>2\}   \{x\in\mathbb{R} : x>2\}
(1,7) <- (1,5]\cup[2,7) | [0,1] <- [0,1)\cup\{1\} | \mathbb R <- (-\infty,\infty)
\mathbb{R}\setminus[-1,1] <- (-\infty,-1)\cup(1,\infty)
\mathbb{R}\setminus\{0\} <- x\ne0   x\in\mathbb R, x\ne0
\mathbb{R}\setminus\{-1,1\} <- x\ne\pm1   x\ne1, x\ne-1 | \sqrt{1-x^2} <- \cos(\arcsin x)
24 <- \Gamma(5) | \{2\}\cup\{5\} <- \{2,5\} | (2,3) <- (0,3)\cap(2,5)   x>2 and x<3 | [1,1] <- \{1\}
(1,\sqrt5) <- (1,2]\cup(\sqrt3,\sqrt5)
2\begin{pmatrix}1&2\\3&4\end{pmatrix} <- \begin{pmatrix}2&4\\6&8\end{pmatrix}
\sqrt2-1 <- 1/(1+\sqrt2) | 28 <- 28\% | x+y=1 <- 2x+2y=2 | f(x)=x+1 <- y=x+1 | S_1:S_2=7:32 <- 7:32
"""

REFUSED = r"""
vitamin A <- vitamin | A <- not A   A and B   none of A   B   A or B   A, B   AB
5 <- 5 \text{ or } 6   5\text{ to }7   5, \ldots   x=5 or x=6   x=5,y=6   -5   6   5!   5x
5 <- \sqrt5   5^2   >5   \neq 5   x\ne5   x>5   x\ge5   5 million   fifty   2x+3=5   5 or more
5 <- 5 to 7   between 4 and 6   5 is wrong   5 and 6   5+-1   5\pm1   [5]
10 <- 10 \text{ or less}   1 0 | \sqrt{a+b} <- \sqrt a+\sqrt b | \ln x <- \log x
8 <- 2^3=9   8.001
0 <- 0/0   1e-10   nan   False   \emptyset   \frac{1}{0}-\frac10   0^{-1}   1e8-1e8+1e-9
0 <- 10^{-12}   \sin\pi+10^{-9}
1 <- 0/0   True   None   3^{3^{3^{57}}}   \frac{x}{x+1}   \cos(10^{-5})   e^{i\pi}   \{\{1\}\}
1 <- \cos(10^{-9}) | \{1\} <- \{2\}   \{\{1\}\} | \emptyset <- \{\emptyset\}   0   x<0 or x>11
5 dollars <- 5 euros | 3 hours <- 3 minutes | 1011_2 <- 1011_3 | 1000000 <- 1000001
2 <- 1 or 2   1,2   2,3   x^2=4   1+1+   (2   2)   {2   \lfloor\log_2 8\rfloor
59 <- 58 59 44   58, 59, 44
58 <- 58 (or 59)   58 or 59   57 or 58 or 59   31_4   not 58   about 59   at least 58
58 <- less than 58   58 mod 59   -58   58x   58^2   (C) 59 | (1,2) <- (2,1)   [1,2]   x=1,x=2
[1,2] <- (1,2)   \{1,2\} | [1,2) <- (1,2] | eat <- tea | 6001 <- 6\,002 | 7 <- 6\,001   9=4b+d
5 cm <- 5 m | 10 cm^2 <- 10 cm | 10 cm <- 10 cm^2 | 9=4b+d <- 4b+d   7 | 0.28 <- 28   28%   28\%
28 <- 0.28 | 100 <- 1,00 | 3.5 <- 3,5 | 123 <- 1,23 | 23 <- 2\,3 | 52 <- 31_4
31_4 <- 31_5   31_{10} | \pm2 <- 2 | 1\pm\sqrt2 <- 1+\sqrt2 | 2,3 <- 2 | 5,6 <- 5,6,7 | 2,3,4 <- 2,3
a <- A | b <- B | Paris <- London   Paris or London   not Paris | 1/2 <- 1/3   2   \frac{2}{1}
x+1 <- x-1   y+1 | \sqrt2 <- \sqrt3   2   1.57 | 1/3 <- 0.33   0.3 | 14.28 <- 100/7 | 7.57 <- 7.573
8.001 <- 8 | 3.14 <- 3.15 | \pi <- 3.14   22/7 | e <- 2.7 | \frac{1}{1807!} <- \frac{1}{1809!}
2^{87} <- 2^{86} | 10^{10^{10}} <- 10^{10} | (0,1)\cup(2,3) <- (0,1)\cup(2,4)   (0,1) | 1,2 <- 1<x<2
\{1,2\} <- (1,2)   [1,2]
\begin{pmatrix}1&2\\3&4\end{pmatrix} <- \begin{pmatrix}1&3\\2&4\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} <- \begin{pmatrix}1&2\end{pmatrix} | x=5 <- y=5   x=6
x=1,y=2 <- x=2,y=1   2,1 | x>5 <- x<5   x\ge5   y>5 | x^2+y^2=1 <- x^2-y^2=1   x^2+y^2=2
1+2i <- 1-2i | x <- \sqrt{x^2}   x_1   |x|   \sqrt[4]{x^4}   \arcsin(\sin x)   \arctan(\tan x)
x_1 <- x_2 | 12 <- 12m   11 + 2 k (   1 2   \frac{12}{0} | 20+35m <- 70
3 <- \sum_{k=1}^{3} k   4=3   1+1=3   x^2=3   [1]   \log 8   \lfloor\log_2 8\rfloor   \sqrt3
\frac{\pi}{3} <- 45^\circ | 60^\circ <- 60\% | 60% <- 60 cm | 5 \text{ million} <- 5
19:15 <- 7:15 am | 1:2 <- 2:1 | C <- (D) 58   (C) and (D)   C or D | g(x) <- g(y)
\sin x <- \cos x   \sin y   \sqrt{1-\cos^2 x} | 2^n <- 2^{n+1} | n! <- (n+1)! | (x+1)^2 <- x^2+1
\frac{x}{y} <- \frac{y}{x} | \sqrt{2} <- -\sqrt{2} | \frac{1}{2} <- 0.51   half of 4
0.1 <- 0.10001 | 1000 <- 1.000 | 1234.56 <- 1.234,56 | 6 <- 2 3   2\ 3 | 30 <- \text{3}0x
4 <- 3/12   \log_2 15   4\sqrt{2}   4 dozen   4 squared   4 times   4! | 3/15 <- 5
\frac{3}{4} <- 3,4 | 3.4 <- 3,4 | 8,-3 <- 6 | \sqrt{31},-\sqrt{59} <- \sqrt{31}
all reals <- no reals | yes <- no | \{0\} <- \emptyset | 17 <- 17 or so | None <- 0 | x+3n+2 <- x+1
90a+b+c <- 100 | 2-c <- 2-m | a+b+c <- a+c | 1,1,2 <- 1,2 | 3,3,4 <- 3,4,4 | 2\ln x <- \ln x^2
\frac{\pi}{2} <- \arctan x+\arctan\frac{1}{x} | \cos 2x <- 2\cos x   2\cos^2 x+1 | (n+1)! <- n\,n!
\binom{n}{2} <- \frac{n(n+1)}{2} | \lfloor x\rfloor <- x | \lfloor 2x\rfloor <- 2\lfloor x\rfloor
\sqrt{xy} <- xy | 1 \cdot -2^2 <- 4 | (1,7) <- (1,5)\cup(5,7) | [0,1] <- [0,1)
x<0 or x>11 <- x<0 and x>11 | (-\infty,\infty) <- (-\infty,0)\cup(0,\infty)
\mathbb R <- \mathbb Z   x\ne1, x\ne2 | 10^{-12} <- \sin 10^{-12} | \sqrt2 <- \sqrt2(1+10^{-20})
(2,\infty) <- \{x\in\mathbb{Z} : x>2\} | (1,3) <- \{1,2,3\}
2\begin{pmatrix}1&2\\3&4\end{pmatrix} <- \begin{pmatrix}2&2\\3&4\end{pmatrix} | B <- b)
25^\circ F <- 25^\circ C | 16:30 <- 4:30 am | 2^{88888} <- 2^{99999} | 13 <- 11,2
e^{40} <- e^{40}+1 | 10^{20}+\sqrt2 <- 10^{20}+\sqrt3 | 3x-y+13=0 <- 3x+4y+14=0
"""


def pairs(table: str) -> list[tuple[str, str]]:
    """Gold and answer; three spaces part several answers to one gold, bars the golds."""
    rows = [row.split(" <- ") for line in table.strip().splitlines() for row in line.split(" | ")]
    return [(gold, answer) for gold, answers in rows for answer in answers.split("   ")]


def ways(answer: str) -> list[str]:
    """Responses that state the answer in every place the verifier looks."""
    return [
        f"Let us see. \\boxed{{{answer}}}",
        f"<think>maybe \\boxed{{0}}</think>\nSo $\\boxed{{{answer}}}$.",
        f"Work.\n\n**Answer:** {answer}",
        f"<answer>{answer}</answer>",
        f"Final Answer: {answer}",
    ]


@pytest.mark.parametrize(("gold", "answer"), pairs(ACCEPTED))
def test_accepted(gold: str, answer: str) -> None:
    for response in ways(answer):
        assert grade(response, gold) is True, response


@pytest.mark.parametrize(("gold", "answer"), pairs(REFUSED))
def test_refused(gold: str, answer: str) -> None:
    for response in ways(answer):
        assert grade(response, gold) is False, response


# ↵ stands for the end of a line
FOUND = r"""
-4,3 <- \[ \boxed{3} \quad \text{and} \quad \boxed{-4}. \] | 12 <- \boxed 12.
5/6 <- The answer is $\frac12 +\! \frac13$. | 2 <- <think>\boxed{1}</think> The answer is 2.
1 <- \boxed{1} \boxed{} | 5 <- \boxed{\boxed{5}}   \boxed{\text{so }\boxed{5}}   \fbox{5}   \boxed 5
5 <- Final Answer: 5   **Final Answer**↵↵5   **Answer:** $5$   Answer: **5**   Answer: $5
5 <- <answer>The answer is 5.</answer>   The answer is 5 because 2+3=5.   Answer: 5, which is odd
5 <- The final answer is $\boxed{5}$.   5   The answer is↵\[↵5↵\]   Answer: 5%
6 <- \boxed{5}, but that is incorrect. The answer is 6.   Answer: 5↵Answer: 6
1,-2 <- \boxed{1} and \boxed{-2} | -2 <- \boxed{1} and \boxed{-2}
\{1,2\} <- $x=\boxed{1}$ or $x=\boxed{2}$ | 1,2,3 <- \boxed{1}, \boxed{2}, \boxed{3}
1/2 <- The answer is $\frac{1}{2}$. I hope it is correct. | 3.14 <- The answer is 3.14.
C <- The correct answer is C. | Paris <- The answer is Paris. | 34 <- Answer: The largest $n$ is 34.
58 <- Answer: 58<|im_end|>   答案：58   The answer is 57.↵#### 58   \boxed{58} cm   boxed{58}
58 <- \boxed{↵58↵} | \{2,1\} <- \boxed{\{1,2\}} | D <- The answer: D, it doesn't make sense
(1,2) <- Answer: (1,2) | \sqrt2 <- Answer: \sqrt{2}
"""
MISSED = r"""
-4,3 <- \[ \boxed{3} \quad \text{and then} \quad \boxed{-4} \] | 1 <- <think>\boxed{1}</think> hm
1 <- \boxed{1} then \boxed{2 | 5 <- It is not \boxed{5}.   \boxed{5} is wrong.
5 <- \boxed{5}, but that is incorrect. The answer is 6.   <answer> 5   The answer is 5 or 6
5 <- Answer: 5↵Answer: 6   plain 5   I think 5 | 1,-2 <- \boxed{1} and then \boxed{-2}
1,2 <- \boxed{1}. Later \boxed{2}   \boxed{1}, \boxed{2}, \boxed{3}
2 <- \boxed{1}, \boxed{2}, \boxed{3} | 6 <- The answer is 5, 6 or 7   It cannot be \boxed{6}
6 <- The answer is 5 rather than \boxed{6} | 58 <- The answer is not 58.
58 <- #### 58↵#### 59   answer   \mbox{58}   Let me put it in \boxed{}. | abc <- \boxed{a{b}c
1/3 <- The answer is 1/2, not 1/3. | 34 <- Answer: The largest $n$ is not 34.
C <- \boxed{(C) and (D)} | [0,1) <- \boxed{-[0,1)}
"""
RESPONSES = [(*pair, table is FOUND) for table in (FOUND, MISSED) for pair in pairs(table)]


@pytest.mark.parametrize(("gold", "response", "right"), RESPONSES)
def test_extraction(gold: str, response: str, right: bool) -> None:
    response = response.replace("↵", "\n")
    assert grade(response, gold) is right
    assert grade("Some words before.\n\n" + response, gold) is right or response == gold


def test_extract_returns_the_claim() -> None:
    assert extract("first \\boxed{1}, then \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"
    assert extract("The answer is $7$. I am sure.") == "7$"
    assert extract("#### 12\n") == "12"
    assert extract("\\boxed{7}" + " and so on" * 100_000) == "7"
    assert {extract(x) for x in ("nothing to see", "\\boxed{1", "", None, 5)} == {None}


@pytest.mark.parametrize(("mode", "response", "gold", "right"), [
    ("boxed", "Answer: 3\n\\boxed{4}", "4", True), ("boxed", "Answer: 3\n\\boxed{4}", "3", False),
    ("boxed", "Answer: 3", "3", False), ("boxed", "3", "3", False),
    ("answer", "Answer: 3", "3", True), ("answer", "Answer: 6/2", "3", True),
    ("answer", "\\boxed{3}", "3", False), ("answer", "3", "3", False),
    ("auto", "Answer: 3\n\\boxed{4}", "4", True), ("dapo", "So it is 5.\nAnswer: 5", "5", True),
    ("dapo", "Answer: 4\nAnswer: $5$", "5", True), ("dapo", "answer : x = 5", "5", True),
    ("dapo", "Answer: 1,234", "1234", True), ("dapo", "Answer: 5 cm", "5", True),
    ("dapo", "Answer: \\dfrac12", "\\frac{1}{2}", True),
    ("dapo", "Answer: \\text{yes}", "yes", True),
    ("dapo", "Answer: 1/2", "0.5", False),  # an exact string match, nothing more
    ("dapo", "Answer: 5\nAnswer: 4", "5", False), ("dapo", "\\boxed{5}", "5", False),
    ("dapo", "Answer: 5" + "." * 300, "5", False),  # only the last 300 characters
    ("dapo", "Answer:", "5", False),
])  # fmt: skip
def test_modes_look_only_where_the_prompt_asks(mode, response, gold, right) -> None:
    assert grade(response, gold, mode=mode) is right
    with pytest.raises(ValueError, match="mode must be one of"):
        grade(response, gold, mode="box")


def test_what_is_read() -> None:
    assert read("1/2") == read("0.5")._replace(places=None) == read("\\frac{2}{4}")
    assert read("\\{1,2\\}") == Group("set", (read("1"), read("2")))
    assert read("The  Circle") == Group("text", ("circle",))
    assert len(read("x + 1").at) == 3 and len(read("\\sqrt{2}").at) == 1
    assert read("7 cm").unit == "cm" and read("x = 7").name == "x"
    assert read("2^{10}") == Scalar((Fraction(1024),))


def test_letters_differ_at_every_point() -> None:
    """Equal values of two letters, or -1, 0 and 1, would make unequal expressions equal."""
    names = [c for c in string.ascii_letters if c not in "ei"]
    names += [f"\\{name}" for name in ("alpha", "beta", "gamma", "theta", "lambda", "mu", "phi")]
    for values in zip(*[algebra.symbol(name).at for name in names], strict=True):
        ordered = sorted([*values, Fraction(-1), Fraction(0), Fraction(1)])
        assert min(b - a for a, b in pairwise(ordered)) > Fraction(1, 2000)
    assert all(algebra.symbol(name).at[0] > 1 > 0 > min(algebra.symbol(name).at) for name in names)


def test_a_double_knows_what_was_lost() -> None:
    x = read("10^8+\\pi-10^8")
    assert algebra.seen(x.at[0]) > 1e8 and not algebra.same(x, read("\\pi"))
    assert algebra.same(read("\\sqrt2+\\pi-\\sqrt2"), read("\\pi"))
    assert algebra.same(read("\\sqrt2\\sqrt2-2"), read("0"))


def test_the_product_of_two_matrices() -> None:
    square = "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"
    assert grade(f"\\boxed{{{square}{square}}}", "\\begin{pmatrix}7&10\\\\15&22\\end{pmatrix}")


def test_limits() -> None:
    for depth, right in ((50, True), (90, False)):
        assert grade("\\boxed{" + "(" * depth + "5" + ")" * depth + "}", "5") is right
    long = "x" * 3000
    assert grade(f"\\boxed{{{long}}}", long) and not grade(f"\\boxed{{{long}}}", long + "x")
    assert not grade("\\boxed{" + "1+" * 1500 + "1}", "1501")


def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, verify.__file__, *args]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def test_command_line(tmp_path: Path) -> None:
    said = [("\\boxed{4}", "4"), ("\\boxed{5}", 4), ("#### 4", 4)]
    records = [{"out": out, "want": want} for out, want in said]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, records)) + "\n\n", "utf-8")
    done = run(str(source), "--response", "out", "--gold", "want", "--grade", "ok")
    assert done.returncode == 0 and "2 of 3 right, accuracy 0.6667" in done.stdout
    lines = (tmp_path / "in.graded.jsonl").read_text("utf-8").splitlines()
    marked = [r | {"ok": ok} for r, ok in zip(records, (True, False, True), strict=True)]
    assert [json.loads(line) for line in lines] == marked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.graded.jsonl", "in.jsonl"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"response": "x"}', "\x00", "[" * 90_000, None])
def test_command_line_names_the_bad_record_or_file(tmp_path: Path, line: str | None) -> None:
    source = tmp_path / "in.jsonl"
    if line:
        source.write_text('{"response": "a", "gold": "b"}\n' + line + "\n", "utf-8")
    done = run(str(source))
    assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1
    assert (f"{source}:2: " if line else "in.jsonl") in done.stderr
    assert list(tmp_path.iterdir()) == ([source] if line else [])


def test_command_line_of_a_pipe() -> None:
    lines = [json.dumps({"response": f"\\boxed{{{n}}}", "gold": "2"}) for n in range(4)]
    done = run("-", stdin="\n".join(lines))
    assert done.returncode == 0
    found = [json.loads(line)["grade"] for line in done.stdout.splitlines()]
    assert found == [False, False, True, False]
    assert done.stderr == "-: 1 of 4 right, accuracy 0.2500\n"


def test_command_line_names_the_golds_that_it_cannot_read(tmp_path: Path) -> None:
    golds = ["1", "\\frac{1}{", "Paris", "yes, 5 (", 7, None]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps({"response": "", "gold": g}) for g in golds), "utf-8")
    done = run(str(source))
    assert done.returncode == 0 and "accuracy 0.0000" in done.stdout
    assert "3 golds (50.00%) cannot be read" in done.stdout and "lines 2, 4, 6\n" in done.stdout


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path, monkeypatch, capsys) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"response": "1", "gold": "1"}\n' * 250, "utf-8")
    assert verify.main([str(source)]) == 0 and capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert verify.main([str(source)]) == 0
    bars = capsys.readouterr().err.split("\r")[1:]
    assert [bar.split()[-1] for bar in bars] == ["100", "200"] and "#" in bars[1]
