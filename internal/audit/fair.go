package audit

import (
	"bytes"
	"maps"
	"slices"
)

// holder is whose lines count together. What the daemon does by itself does not displace what its
// user does.
type holder struct {
	uid uint32
	own bool
}

// fair returns the newest lines of the text that have at most that many bytes together. Each holder
// keeps the newest up to an equal share, and those with less leave the rest to the others.
func fair(text []byte, most int, of func(line []byte) (holder, bool)) []byte {
	sizes := make(map[holder]int)
	for line := range bytes.Lines(text) {
		if h, ok := of(line); ok {
			sizes[h] += len(line)
		}
	}
	share := shareOf(slices.Collect(maps.Values(sizes)), most)
	var kept []byte
	for line := range bytes.Lines(text) {
		h, ok := of(line)
		if !ok {
			continue
		}
		if sizes[h] > share {
			sizes[h] -= len(line)
			continue
		}
		kept = append(kept, line...)
	}
	return kept
}

// shareOf returns the bound of each size that makes their sum at most that much.
func shareOf(sizes []int, most int) int {
	slices.Sort(sizes)
	left := most
	for i, n := range sizes {
		if share := left / (len(sizes) - i); n > share {
			return share
		}
		left -= n
	}
	return most
}
