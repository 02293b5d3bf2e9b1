"""What the verifier accepts and refuses, kind by kind, and where it looks for the answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import verify
from verify import Group, Scalar, Text, extract, grade, normalize

ACCEPTED = r"""
8  <-  8.0
5  <-  05
-5  <-  −5
5  <-  5\\
1000  <-  1{,}000
1000  <-  1,\!000
1000  <-  1_000
1000000  <-  10^6
1000000  <-  1e6
1000000  <-  1\times10^6
1000000  <-  1,000,000
1/2  <-  \frac12
1/2  <-  .5
1/2  <-  2/4
3/2  <-  1\frac12
3/2  <-  1 1/2
3/2  <-  1½
-3/2  <-  -1\frac{1}{2}
50  <-  50%
50\%  <-  50
50\%  <-  0.5
50\%  <-  1/2
5  <-  \$5
5  <-  5 dollars
\$5  <-  5 dollars
90  <-  90^\circ
90^{\circ}  <-  90
90  <-  90 degrees
90  <-  90°
\sqrt8  <-  2\sqrt2
\frac{\sqrt{3}}{3}  <-  \frac1{\sqrt3}
\frac{\pi}{6}  <-  pi/6
\frac\pi6  <-  \pi/6
5  <-  x=5
5  <-  5=x
x=5  <-  5
\{1,2\}  <-  \{2,1\}
\{1,2\}  <-  1,2
\{1,2\}  <-  2 and 1
[1,2)  <-  1\le x<2
x\in[1,2)  <-  [1,2)
x\in[1,2)  <-  1 \leq x < 2
\pm2  <-  2,-2
2,-2  <-  \pm 2
\{2,-2\}  <-  \pm2
\begin{pmatrix}1&2\\3&4\end{pmatrix}  <-  \begin{bmatrix}1&2\\3&4\end{bmatrix}
\text{Yes}  <-  yes
Yes  <-  \textbf{YES}
A  <-  (A)
(A)  <-  A
A  <-  \text{(A)}
C  <-  \mathrm{C}
1/3  <-  0.\overline3
1/3  <-  0.\overline{3}
1/3  <-  0.\bar{3}
1/3  <-  0.(3)
1/3  <-  0.333...
1/6  <-  0.1\overline{6}
1/7  <-  0.\overline{142857}
1+2i  <-  i(2-i)
x+1  <-  1+x
\infty  <-  ∞
\infty  <-  infinity
\infty  <-  +\infty
B  <-  Option B
B  <-  B)
D  <-  choice (D)
circle  <-  A circle
5\sqrt{2}  <-  5\sqrt{2} \text{ units}
\frac{\sqrt6-\sqrt2}{4}  <-  \frac{1}{\sqrt6+\sqrt2}
\frac{-1+i\sqrt3}{2}  <-  -\frac12+\frac{\sqrt3}{2}i
3,4,5  <-  3, 4, \text{ and } 5
e^{2x}  <-  (e^x)^2
|x-1|  <-  |1-x|
\frac{1}{n(n+1)}  <-  \frac1n-\frac1{n+1}
3x-2y=5  <-  y=\frac{3x-5}{2}
\frac{10!}{3!7!}  <-  120
x<-1 or x>1  <-  (-\infty,-1)\cup(1,\infty)
(3,4)  <-  x=3, y=4
\sqrt{2}+\sqrt{3}  <-  \sqrt{5+2\sqrt6}
no solution  <-  \text{No solution}
(x+2)/7  <-  x/7 + 2/7
\frac{x+2}{7}  <-  \frac{x}{7}+\frac{2}{7}
3\sqrt5/7  <-  \frac{3\sqrt5}{7}
2^{10}  <-  1024
4!  <-  24
10\text{ cm}^2  <-  10
10  <-  10 cm^2
14  <-  14\text{ cm}^{2}
10 cm^2  <-  10 square centimeters
10\text{ cm}  <-  10 cm
10  <-  10 \mathrm{~cm}
10  <-  10\,\text{m/s}
76 years  <-  76
12  <-  12 apples
x^2  <-  x²
x^{10}  <-  x¹⁰
5  <-  ５
1/4  <-  ¼
3.5  <-  3½
x^2+2x+1  <-  (x+1)^2
(3,-7)  <-  (3, -7)
(1,2)  <-  \left(1,2\right)
(\frac12,3)  <-  (0.5,3)
(-\infty,9]  <-  (-\infty, 9]
(-\infty,1)\cup(2,\infty)  <-  (2,\infty)\cup(-\infty,1)
(-\infty,1)\cup(2,\infty)  <-  x<1 or x>2
[5,\infty)  <-  x\ge5
x\ge5  <-  [5,\infty)
x>5  <-  5<x
(-\infty,5)  <-  x<5
\emptyset  <-  \varnothing
\varnothing  <-  \{\}
x=1,x=2  <-  1,2
1,2  <-  x=1 or x=2
1,2  <-  x_1=1, x_2=2
x=1,y=2  <-  1,2
x=1,y=2  <-  (1,2)
x=1,y=2  <-  y=2,x=1
(x,y)=(1,2)  <-  (1,2)
\sqrt{3}-1  <-  -1+\sqrt3
\frac{1}{\sqrt2-1}  <-  1+\sqrt2
\frac{1}{\sqrt2+\sqrt3}  <-  \sqrt3-\sqrt2
2\sqrt[3]{2}  <-  \sqrt[3]{16}
\sqrt[3]{-8}  <-  -2
8^{2/3}  <-  4
16^{1/4}  <-  2
\frac{2}{\sqrt[3]{2}}  <-  \sqrt[3]{4}
2\pi  <-  \pi\cdot2
4\pi/3  <-  \frac43\pi
\frac{4\pi}{3}  <-  \frac{4}{3}\pi
e^2  <-  e\cdot e
e^{-1}  <-  1/e
\sqrt{-4}  <-  2i
1.5\times10^3  <-  1500
1.5 \cdot 10^{-3}  <-  0.0015
2.5e-3  <-  .0025
0.5\%  <-  0.005
\binom{5}{2}  <-  10
|x|  <-  \left|x\right|
|-5|  <-  5
a:b=1:2  <-  1:2
12:30  <-  12:30 PM
19:15  <-  7:15 p.m.
five  <-  5
\text{five}  <-  5
3.5 \text{ million}  <-  3500000
3500000  <-  3.5 million
31_4  <-  31_{4}
31_4  <-  31
C  <-  (C) 58
58  <-  (C) 58
58  <-  \text{(C) }58
58  <-  \textbf{(C)}\ 58
The answer is 58  <-  58
\sin x  <-  \sin(x)
2\sin x\cos x  <-  2\cos x\sin x
\log_2 3  <-  \log_{2}{3}
\ln 2  <-  \ln(2)
\frac{1}{\cos x}  <-  \sec x
2^{n+1}-1  <-  2\cdot 2^n-1
n!  <-  n!
\frac{n(n+1)}{2}  <-  \frac{n^2+n}{2}
x^2+y^2=1  <-  1-x^2-y^2=0
y=2x+1  <-  2x-y+1=0
y=2x+1  <-  f(x)=2x+1
y=2x+1  <-  2x+1
(1,2),(3,4)  <-  (3,4),(1,2)
\{(1,2),(3,4)\}  <-  (1,2),(3,4)
1,2,3  <-  1, 2 and 3
1,2,3  <-  3;2;1
1,2,3  <-  \{1,2,3\}
14.29  <-  100/7
3.14  <-  \pi
0.33  <-  1/3
\frac{100}{7}  <-  14.2857
60^\circ  <-  \frac{\pi}{3}
\pi/3  <-  60^\circ
\frac{\pi}{3}  <-  \frac{\pi}{3}\text{ radians}
\frac{1}{2}  <-  \dfrac{1}{2}
7  <-  \boxed{7}
2\frac34  <-  2.75
6 - 5i  <-  6-5i
-\frac{1}{2}  <-  \frac{-1}{2}
-\frac{1}{2}  <-  \frac{1}{-2}
\frac{3}{4}  <-  3\div4
12  <-  3\cdot4
\dfrac{3\sqrt{2}}{2}  <-  \frac{3}{\sqrt2}
x\ne5  <-  (-\infty,5)\cup(5,\infty)
\text{odd}  <-  odd
the circle  <-  circle
Alice  <-  alice
f'(x)  <-  f'(x)
n\text{ is even}  <-  n is even
\frac{1}{x+1}-\frac{1}{x}  <-  -\frac{1}{x(x+1)}
(x-1)(x^2+x+1)  <-  x^3-1
\frac{x^2-1}{x-1}  <-  x+1
\langle1,2\rangle  <-  (1,2)
k\pi  <-  \pi k
2k\pi, k\in\mathbb{Z}  <-  2\pi k
\{x|x>2\}  <-  \{x|x>2\}
100  <-  100.00
100  <-  100.
1.0  <-  1
$5$  <-  5
\(5\)  <-  5
5  <-  $5$
5  <-  \[5\]
5.  <-  5
5  <-  5,
f(x)=x^2  <-  x^2
AB=5  <-  5
\angle ABC=30^\circ  <-  30
P(A)=\frac23  <-  2/3
A_{\max}=4  <-  4
\sqrt{5}  <-  √5
2√3  <-  2\sqrt3
\sqrt{5}  <-  sqrt(5)
\frac{\sqrt{5}}{2}  <-  sqrt(5)/2
x^2  <-  x**2
2*3  <-  6
\text{3 hours}  <-  3
3  <-  3\ \text{hours}
40  <-  \text{40 mph}
25^\circ\text{C}  <-  25
\$1,234.50  <-  1234.5
€5  <-  5
\text{A and B}  <-  A and B
\begin{pmatrix}1\\2\end{pmatrix}  <-  \begin{bmatrix}1\\2\end{bmatrix}
\begin{array}{cc}1&2\\3&4\end{array}  <-  \begin{pmatrix}1&2\\3&4\end{pmatrix}
0  <-  -0
0  <-  0.0
\frac{0}{5}  <-  0
1:2:3  <-  1:2:3
10^{-3}  <-  0.001
6.02\times10^{23}  <-  6.02e23
-1/2  <-  -.5
+7  <-  7
(3)  <-  3
\left\{1,2\right\}  <-  {1,2}
2.718  <-  e
\frac{1}{2}+\frac{1}{3}  <-  5/6
\sqrt{2}\sqrt{3}  <-  \sqrt6
(\sqrt2+1)^2  <-  3+2\sqrt2
\sqrt{3+2\sqrt2}  <-  1+\sqrt2
\sqrt{\sqrt{16}}  <-  2
i^2  <-  -1
(1+i)^2  <-  2i
\frac{1}{i}  <-  -i
x_{1}  <-  x_1
\alpha+\beta  <-  \beta+\alpha
\mathbb{R}  <-  \mathbb R
(-\infty,\infty)  <-  (-\infty, +\infty)
7\frac{1}{2}\%  <-  7.5%
"""

REFUSED = r"""
vitamin A  <-  vitamin
A  <-  not A
A  <-  A and B
A  <-  none of A
5  <-  5 \text{ or } 6
5  <-  5\text{ to }7
5  <-  5, \ldots
10  <-  10 \text{ or less}
\sqrt{a+b}  <-  \sqrt a+\sqrt b
\ln x  <-  \log x
y=x^2  <-  x=y^2
5  <-  x=5 or x=6
5  <-  x=5,y=6
8  <-  2^3=9
0  <-  0/0
1  <-  0/0
\{1\}  <-  \{2\}
\emptyset  <-  \{\emptyset\}
5 dollars  <-  5 euros
3 hours  <-  3 minutes
1011_2  <-  1011_3
1/7  <-  0.143
3+4i  <-  4+3i
5  <-  -5
5  <-  6
1000000  <-  1000001
0  <-  1e-10
5  <-  5!
5  <-  5x
5  <-  \sqrt5
5  <-  5^2
5  <-  >5
5  <-  \neq 5
5  <-  x\ne5
5  <-  x>5
5  <-  x\ge5
2  <-  1 or 2
2  <-  1,2
59  <-  58 59 44
59  <-  58, 59, 44
58  <-  58 (or 59)
58  <-  58 or 59
58  <-  57 or 58 or 59
(1,2)  <-  (2,1)
(1,2)  <-  [1,2]
[1,2]  <-  (1,2)
[1,2)  <-  (1,2]
eat  <-  tea
6001  <-  6\,002
7  <-  6\,001
5 cm  <-  5 m
10 cm^2  <-  10 cm
10 cm  <-  10 cm^2
9=4b+d  <-  4b+d
9=4b+d  <-  7
7  <-  9=4b+d
1  <-  True
1  <-  None
0  <-  nan
0  <-  False
0.28  <-  28
28  <-  0.28
100  <-  1,00
3.5  <-  3,5
123  <-  1,23
23  <-  2\,3
58  <-  31_4
52  <-  31_4
31_4  <-  31_5
31_4  <-  31_{10}
\pm2  <-  2
1\pm\sqrt2  <-  1+\sqrt2
2,3  <-  2
2  <-  2,3
5,6  <-  5,6,7
2,3,4  <-  2,3
A  <-  B
a  <-  A
b  <-  B
A  <-  A or B
A  <-  A, B
A  <-  AB
(A)  <-  (B)
Paris  <-  London
Paris  <-  Paris or London
Paris  <-  not Paris
58  <-  not 58
58  <-  about 59
58  <-  at least 58
58  <-  less than 58
58  <-  58 mod 59
58  <-  -58
-58  <-  58
1/2  <-  1/3
1/2  <-  2
1/2  <-  \frac{2}{1}
x+1  <-  x-1
x+1  <-  y+1
x^2  <-  x^3
\sqrt2  <-  \sqrt3
\sqrt2  <-  2
\sqrt2  <-  1.57
1/3  <-  0.33
1/3  <-  0.3
14.28  <-  100/7
7.57  <-  7.573
8  <-  8.001
8.001  <-  8
3.14  <-  3.15
\pi  <-  3.14
\pi  <-  22/7
\pi  <-  355/113
e  <-  2.7
\frac{1}{1807!}  <-  \frac{1}{1809!}
2^{87}  <-  2^{86}
10^{10^{10}}  <-  10^{10}
1  <-  3^{3^{3^{57}}}
[0,1)  <-  (0,1)
(0,1)\cup(2,3)  <-  (0,1)\cup(2,4)
(0,1)\cup(2,3)  <-  (0,1)
1,2  <-  1<x<2
(1,2)  <-  x=1,x=2
\{1,2\}  <-  (1,2)
\{1,2\}  <-  [1,2]
\begin{pmatrix}1&2\\3&4\end{pmatrix}  <-  \begin{pmatrix}1&2\\3&5\end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix}  <-  \begin{pmatrix}1&3\\2&4\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix}  <-  \begin{pmatrix}1&2\end{pmatrix}
x=5  <-  y=5
x=5  <-  x=6
x=1,y=2  <-  x=2,y=1
x=1,y=2  <-  2,1
x>5  <-  x<5
x>5  <-  x\ge5
x>5  <-  y>5
y=2x+1  <-  y=2x
x^2+y^2=1  <-  x^2-y^2=1
x^2+y^2=1  <-  x^2+y^2=2
1+2i  <-  1-2i
2i  <-  2
|x|  <-  x
x  <-  \sqrt{x^2}
x  <-  x_1
x_1  <-  x_2
58  <-  58x
58  <-  58^2
12  <-  12m
20+35m  <-  70
12  <-  11 + 2 k (
3  <-  \sum_{k=1}^{3} k
\frac{\pi}{3}  <-  45^\circ
60^\circ  <-  60\%
60%  <-  60 cm
0.28  <-  28%
0.28  <-  28\%
0.28  <-  28
5 \text{ million}  <-  5
5  <-  5 million
five  <-  6
5  <-  fifty
12:30  <-  12:31
19:15  <-  7:15 am
1:2  <-  2:1
3  <-  4=3
3  <-  1+1=3
5  <-  2x+3=5
3  <-  x^2=3
2  <-  x^2=4
C  <-  (D) 58
58  <-  (C) 59
D  <-  (C) 58
g(x)  <-  g(y)
\sin x  <-  \cos x
\sin x  <-  \sin y
\log_2 3  <-  \log_3 2
2^n  <-  2^{n+1}
n!  <-  (n+1)!
(x+1)^2  <-  x^2+1
\frac{x}{y}  <-  \frac{y}{x}
a/b  <-  b/a
ab  <-  a+b
1  <-  \frac{x}{x+1}
5  <-  5 or more
5  <-  5 to 7
5  <-  between 4 and 6
5  <-  5 is wrong
5  <-  5 and 6
5  <-  5+-1
5  <-  5\pm1
\sqrt{2}  <-  -\sqrt{2}
\frac{1}{2}  <-  0.51
0.1  <-  0.10001
1e3  <-  1e4
1000  <-  1.000
1234.56  <-  1.234,56
10  <-  1 0
12  <-  1 2
6  <-  2 3
6  <-  2\ 3
30  <-  \text{3}0x
4  <-  3/12
3/15  <-  5
\frac{3}{4}  <-  3,4
3.4  <-  3,4
8,-3  <-  6
\sqrt{31},-\sqrt{59}  <-  \sqrt{31}
all reals  <-  no reals
yes  <-  no
increasing  <-  decreasing
\infty  <-  -\infty
\emptyset  <-  0
0  <-  \emptyset
\{0\}  <-  \emptyset
3  <-  [1]
17  <-  17 or so
None  <-  0
2  <-  1+1+
2  <-  (2
2  <-  2)
2  <-  {2
x+3n+2  <-  x+1
90a+b+c  <-  100
2-c  <-  2-m
a+b+c  <-  a+c
12  <-  \frac{12}{0}
0  <-  \frac{1}{0}-\frac10
0  <-  0^{-1}
1,1,2  <-  1,2
3,3,4  <-  3,4,4
"""


def pairs(table: str) -> list[tuple[str, str]]:
    return [tuple(line.split("  <-  ")) for line in table.strip().splitlines()]


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


# response, gold, verdict
EXTRACTED = [
    ("\\[ \\boxed{3} \\quad \\text{and} \\quad \\boxed{-4}. \\]", "-4,3", True),
    ("\\[ \\boxed{3} \\quad \\text{and then} \\quad \\boxed{-4} \\]", "-4,3", False),
    ("The answer is $\\frac12 +\\! \\frac13$.", "5/6", True),
    ("<think>\\boxed{1}</think> The answer is 2.", "2", True),
    ("<think>\\boxed{1}</think> hm", "1", False),
    ("\\boxed{1} \\boxed{}", "1", True),
    ("\\boxed{1} then \\boxed{2", "1", False),
    ("\\boxed{\\boxed{5}}", "5", True),
    ("\\boxed{\\text{so }\\boxed{5}}", "5", True),
    ("\\fbox{5}", "5", True),
    ("$\\boxed 5$", "5", True),
    ("\\boxed 5", "5", True),
    ("\\boxed 12.", "12", True),
    ("It is not \\boxed{5}.", "5", False),
    ("\\boxed{5} is wrong.", "5", False),
    ("\\boxed{5}, but that is incorrect. The answer is 6.", "6", True),
    ("\\boxed{5}, but that is incorrect. The answer is 6.", "5", False),
    ("\\boxed{1} and \\boxed{-2}", "1,-2", True),
    ("\\boxed{1} and \\boxed{-2}", "-2", True),
    ("\\boxed{1} and then \\boxed{-2}", "1,-2", False),
    ("$x=\\boxed{1}$ or $x=\\boxed{2}$", "\\{1,2\\}", True),
    ("\\boxed{1}. Later \\boxed{2}", "1,2", False),
    ("\\boxed{1}, \\boxed{2}, \\boxed{3}", "1,2,3", True),
    ("\\boxed{1}, \\boxed{2}, \\boxed{3}", "1,2", False),
    ("\\boxed{1}, \\boxed{2}, \\boxed{3}", "2", False),
    ("Final Answer: 5", "5", True),
    ("**Final Answer**\n\n5", "5", True),
    ("**Answer:** $5$", "5", True),
    ("Answer: **5**", "5", True),
    ("answer is: 5.", "5", True),
    ("The answer is $\\frac{1}{2}$. I hope it is correct.", "1/2", True),
    ("#### 5", "5", True),
    ("<answer>5</answer>", "5", True),
    ("<answer> 5", "5", False),
    ("<answer>The answer is 5.</answer>", "5", True),
    ("The answer is 5 or 6", "5", False),
    ("The answer is 5, 6 or 7", "6", False),
    ("Answer: 5\nAnswer: 6", "5", False),
    ("Answer: 5\nAnswer: 6", "6", True),
    ("The answer is 3.14.", "3.14", True),
    ("The answer is 5 because 2+3=5.", "5", True),
    ("The final answer is $\\boxed{5}$.", "5", True),
    ("5", "5", True),
    ("plain 5", "5", False),
    ("I think 5", "5", False),
    ("The answer is \\(5\\).", "5", True),
    ("The answer is\n\\[\n5\n\\]", "5", True),
    ("Answer: (C) 58", "C", True),
    ("The correct answer is C.", "C", True),
    ("The answer is (B).", "B", True),
    ("The answer is Paris.", "Paris", True),
    ("Answer: 58<|im_end|>", "58", True),
    ("\\boxed{58}<|im_end|>", "58", True),
    ("答案：58", "58", True),
    ("The answer is not 58.", "58", False),
    ("#### 58\n#### 59", "58", False),
    ("The answer is 57.\n#### 58", "58", True),
    ("\\boxed{58} cm", "58", True),
    ("boxed{58}", "58", True),
    ("\\boxed{\n58\n}", "58", True),
    ("\\boxed{a{b}c", "abc", False),
    ("\\boxed{\\{1,2\\}}", "\\{2,1\\}", True),
    ("answer", "58", False),
    ("The answer: D, it doesn't make sense", "D", True),
    ("\\mbox{58}", "58", False),
    ("Let me put it in \\boxed{}.", "58", False),
    ("The answer is 1/2, not 1/3.", "1/3", False),
    ("Answer: x=5", "5", True),
    ("Answer: 5 apples", "5", True),
    ("Answer: \\$5", "5", True),
    ("Answer: $5", "5", True),
    ("Answer: 5%", "5", True),
    ("Answer: 1,000.", "1000", True),
    ("Answer: (1,2)", "(1,2)", True),
    ("Answer: [1,2)", "[1,2)", True),
    ("Answer: -5", "-5", True),
    ("Answer: \\sqrt{2}", "\\sqrt2", True),
]


@pytest.mark.parametrize(("response", "gold", "right"), EXTRACTED)
def test_extraction(response: str, gold: str, right: bool) -> None:
    assert grade(response, gold) is right
    assert grade("Some words before.\n\n" + response, gold) is right or response == gold


def test_extract_returns_the_claim() -> None:
    assert extract("first \\boxed{1}, then \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"
    assert extract("The answer is $7$. I am sure.") == "7$"
    assert extract("#### 12\n") == "12"
    assert extract("nothing to see") is None
    assert extract("\\boxed{1") is None
    assert extract("") is None and extract(None) is None and extract(5) is None
    far = "\\boxed{7}" + " and so on" * 100_000
    assert extract(far) == "7"


def test_modes_look_only_where_the_prompt_asks() -> None:
    both = "Answer: 3\n\\boxed{4}"
    assert (
        grade(both, "4") and grade(both, "4", mode="boxed") and not grade(both, "3", mode="boxed")
    )
    assert not grade("Answer: 3", "3", mode="boxed") and not grade("3", "3", mode="boxed")
    assert grade("Answer: 3", "3", mode="answer") and grade("Answer: 6/2", "3", mode="answer")
    assert not grade("\\boxed{3}", "3", mode="answer") and not grade("3", "3", mode="answer")
    with pytest.raises(ValueError, match="mode must be one of"):
        grade("3", "3", mode="box")


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("So it is 5.\nAnswer: 5", "5", True),
        ("Answer: 4\nAnswer: $5$", "5", True),
        ("answer : x = 5", "5", True),
        ("Answer: 1,234", "1234", True),
        ("Answer: 5 cm", "5", True),
        ("Answer: \\dfrac12", "\\frac{1}{2}", True),
        ("Answer: \\text{yes}", "yes", True),
        ("Answer: 1/2", "0.5", False),  # an exact string match, nothing more
        ("Answer: 5\nAnswer: 4", "5", False),
        ("\\boxed{5}", "5", False),
        ("Answer: 5" + "." * 300, "5", False),  # only the last 300 characters
        ("Answer:", "5", False),
    ],
)
def test_dapo_mode(response: str, gold: str, right: bool) -> None:
    assert grade(response, gold, mode="dapo") is right


def test_normalize_reads_values() -> None:
    assert normalize("1/2") == normalize("0.5")._replace(places=None) == normalize("\\frac{2}{4}")
    assert isinstance(normalize("\\{1,2\\}"), Group) and normalize("\\{1,2\\}").kind == "set"
    assert normalize("The  Circle") == Text("circle")
    assert isinstance(normalize("x + 1"), Scalar) and len(normalize("x + 1").sig) == 3
    assert len(normalize("\\sqrt{2}").sig) == 1
    assert normalize("7 cm").unit == "cm" and normalize("x = 7").name == "x"


def test_long_answers_compare_as_strings() -> None:
    long = "x" * 3000
    assert grade(f"\\boxed{{{long}}}", long) and not grade(f"\\boxed{{{long}}}", long + "x")
    assert not grade("\\boxed{" + "1+" * 1500 + "1}", "1501")


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, verify.__file__, *args], capture_output=True, text=True, check=False
    )


def test_command_line(tmp_path: Path) -> None:
    records = [
        {"out": "\\boxed{4}", "want": "4"},
        {"out": "\\boxed{5}", "want": 4},
        {"out": "#### 4", "want": 4},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, records)) + "\n\n", "utf-8")
    done = run(str(source), "--response", "out", "--gold", "want", "--grade", "ok")
    assert done.returncode == 0 and "2 of 3 right, accuracy 0.6667" in done.stdout
    written = [
        json.loads(line) for line in (tmp_path / "in.graded.jsonl").read_text("utf-8").splitlines()
    ]
    assert [record["ok"] for record in written] == [True, False, True]
    assert [{k: record[k] for k in ("out", "want")} for record in written] == records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.graded.jsonl", "in.jsonl"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"response": "x"}', "\x00", "[" * 100_000])
def test_command_line_names_the_bad_record(tmp_path: Path, line: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"response": "a", "gold": "b"}\n' + line + "\n", "utf-8")
    done = run(str(source))
    assert done.returncode == 1 and not done.stdout
    assert f"{source}:2: " in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [source]


def test_command_line_without_a_file(tmp_path: Path) -> None:
    done = run(str(tmp_path / "none.jsonl"))
    assert done.returncode == 1 and "none.jsonl" in done.stderr and done.stderr.count("\n") == 1
