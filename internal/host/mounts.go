package host

import (
	"bytes"

	"github.com/moby/sys/mountinfo"
)

// Mounts returns the mounts of a mountinfo file (proc(5)), in its order, with unescaped
// paths. It skips invalid lines: one mount of any user must not hide all others.
func Mounts(text []byte) []*mountinfo.Info {
	var all []*mountinfo.Info
	for line := range bytes.Lines(text) {
		if one, err := mountinfo.GetMountsFromReader(bytes.NewReader(line), nil); err == nil {
			all = append(all, one...)
		}
	}
	return all
}
