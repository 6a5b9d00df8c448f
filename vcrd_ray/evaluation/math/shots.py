"""Worked examples that Qwen2.5-Math's evaluation puts before multiple-choice questions. Data, character by character.

The form feeds and carriage returns stand where the published text has them: its authors wrote `\\frac` unescaped.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """A question with its worked answer."""

    question: str
    answer: str


MULTIPLE_CHOICE_SHOTS = (
    Shot(
        question=(
            "Simplify and write the result with a rational denominator: "
            "$$\\sqrt{\\sqrt[3]{\\sqrt{\frac{1}{729}}}}$$\n"
            "Answer Choices: (A) \\frac{3\\sqrt{3}}{3} (B) \\frac{1}{3} (C) \\sqrt{3} (D) \\frac{\\sqrt{3}}{3}"
        ),
        answer=(
            "Factoring $729=3^6$ and combining the roots $\\frac{1}{2}\\frac{1}{3}\\frac{1}{2}=\\frac{1}{12}$, "
            "we get that "
            "$\\sqrt{\\sqrt[3]{\\sqrt{\frac{1}{729}}}}=\\left(\frac{1}{3^6}\right)^{\frac{1}{12}}"
            "=\frac{1}{3^{\frac{1}{2}}}=\frac{3}{\\sqrt{3}}$. "
            "The answer is (D)."
        ),
    ),
    Shot(
        question=(
            "In animal cells, which of the following represents the most likely pathway that a secretory "
            "protein takes as it is synthesized in a cell?\n"
            "Answer Choices: (A) Plasma membrane–Golgi apparatus–ribosome–secretory vesicle–rough ER (B) "
            "Ribosome–Golgi apparatus–rough ER–secretory vesicle–plasma membrane (C) Plasma membrane–Golgi "
            "apparatus–ribosome–secretory vesicle–rough ER (D) Ribosome–rough ER–Golgi apparatus–secretory "
            "vesicle–plasma membrane"
        ),
        answer=(
            "Protein synthesis starts at the ribosome, so we can eliminate (A) and (C). The ribosome is often "
            "in the endoplasmic reticulum and moves from there to the Golgi apparatus, where it is modified "
            "and packaged into a vesicle. The vesicle then floats to the plasma membrane and is secreted. The "
            "answer is (D)."
        ),
    ),
    Shot(
        question=(
            "A microwave oven is connected to an outlet, 120 V, and draws a current of 2 amps. At what rate is "
            "energy being used by the microwave oven?\n"
            "Answer Choices: (A) 10 W (B) 30 W (C) 60 W (D) 240 W"
        ),
        answer=(
            "Rate of energy usage is known as power; in an dissipative electrical circuit, power is given by "
            "voltage times current. So in our case, the power is 120 V times 2 amps, or 240 W. The answer is "
            "(D)."
        ),
    ),
    Shot(
        question=(
            "Which of the following is considered an acid anhydride?\n"
            "Answer Choices: (A) HCl (B) H2SO3 (C) SO2 (D) Al(NO3)3"
        ),
        answer=(
            "An acid anhydride is a compound that is derived by removing water from an acid. The chemical "
            "formula for water is H2O, which means that we need to determine which of these options, when "
            "combined with H2O, forms an acid. SO2, or Sulfur dioxide, when combined with H2O, makes H2SO4, or "
            "sulfuric acid. The answer is (C)."
        ),
    ),
    Shot(
        question=('What is the output of "abc"[::-1] in Python 3? \nAnswer Choices: (A) Error (B) abc (C) cba (D) c'),
        answer=(
            "We know that the slicing operator [::-1] takes all of the elements in the string in reverse "
            'order, so we reverse the order of the string "abc", resulting in "cba". The answer is (C).'
        ),
    ),
)
