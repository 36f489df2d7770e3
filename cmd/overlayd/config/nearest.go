package config

import (
	"fmt"
	"strings"
)

// unknown says that a word is none of those known, and which one may have been meant. what says what the
// word was to be.
func unknown(what, word string, known []string) error {
	if near, ok := nearest(word, known); ok {
		return fmt.Errorf("unknown %s: did you mean %s?", what, near)
	}
	return fmt.Errorf("unknown %s: choose from %s", what, strings.Join(known, ", "))
}

// nearest finds the known word that fewest edits lead to, if they are so few that it may have been meant.
func nearest(word string, known []string) (string, bool) {
	best, bestCost := "", max(len(word)/3, 2)+1
	for _, k := range known {
		if cost := edits(strings.ToLower(word), k); cost < bestCost && cost < len(k) {
			best, bestCost = k, cost
		}
	}
	return best, best != ""
}

// edits is the number of insertions, deletions, replacements and swaps of neighbours that make b out of a
// (optimal string alignment), in bytes.
func edits(a, b string) int {
	// Three rows of the table: two above, the one above, and the one being filled.
	two, one, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range one {
		one[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(one[j]+1, row[j-1]+1, one[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], two[j-2]+1)
			}
		}
		two, one, row = one, row, two
	}
	return one[len(b)]
}
