"""Modified Kneser-Ney from the formulas, with dictionaries of tuples, for short texts."""

from collections import Counter, defaultdict

START = "start"
FALLBACK = (0.5, 1.0, 1.5)


class SlowKneserNey:
    """units: lists of token ids that are each read from the beginning of a text; stream: they are
    one text, before which stands an ordinary `eos`."""

    def __init__(self, units, vocabulary_size, order, eos=0, stream=False, prune=()):
        self.order, self.vocabulary_size = order, vocabulary_size
        self.begin = eos if stream else START
        if stream:
            units = [[token for unit in units for token in unit]]
        raw = Counter()
        for unit in units:
            text = (self.begin, *unit)
            for end in range(2, len(text) + 1):
                raw.update(text[end - n : end] for n in range(1, min(order, end) + 1))
        before = defaultdict(set)
        alone = Counter()
        for unit in units:
            text = (self.begin, *unit)
            for end in range(2, len(text) + 1):
                for n in range(1, min(order, end) + 1):
                    if end == n:
                        alone[text[:end]] += 1
                    else:
                        before[text[end - n : end]].add(text[end - n - 1])
        self.raw = raw
        self.adjusted = {
            ngram: count if len(ngram) == order else len(before[ngram]) + alone[ngram]
            for ngram, count in raw.items()
        }
        self.pruned = {
            ngram
            for ngram, count in raw.items()
            if prune and count <= prune[min(len(ngram), len(prune)) - 1]
        }
        self.discounts = [self.of_order(n) for n in range(1, order + 1)]
        self.following = defaultdict(list)
        for ngram in raw:
            self.following[ngram[:-1]].append(ngram)

    def of_order(self, n):
        """D_1, D_2, D_3+ of Chen and Goodman 1999, equation 26."""
        of = Counter(a for ngram, a in self.adjusted.items() if len(ngram) == n)
        if not (of[1] and of[2] and of[3]):
            return FALLBACK
        y = of[1] / (of[1] + 2 * of[2])
        found = (1 - 2 * y * of[2] / of[1], 2 - 3 * y * of[3] / of[2], 3 - 4 * y * of[4] / of[3])
        return found if min(found) > 0 else FALLBACK

    def discount(self, ngram):
        a = self.adjusted[ngram]
        return self.discounts[len(ngram) - 1][min(a, 3) - 1]

    def prob(self, word, context):
        """p(word | context), context a tuple of the last symbols, START where a text begins."""
        context = tuple(context)[-(self.order - 1) :] if self.order > 1 else ()
        return self._prob(word, context)

    def _prob(self, word, context):
        lower = self._prob(word, context[1:]) if context else 1 / self.vocabulary_size
        following = self.following.get(context, ())
        total = sum(self.adjusted[ngram] for ngram in following)
        if not total:
            return lower
        gone = sum(
            self.adjusted[ngram] if ngram in self.pruned else self.discount(ngram)
            for ngram in following
        )
        ngram = (*context, word)
        share = 0.0
        if ngram in self.adjusted and ngram not in self.pruned:
            share = self.adjusted[ngram] - self.discount(ngram)
        return (share + gone * lower) / total
