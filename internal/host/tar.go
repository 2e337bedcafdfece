package host

import (
	"archive/tar"
	"strings"
)

// Sparse reports whether a member of a tar is stored without its holes, in one of GNU's two forms.
// Such a member of a few bytes is read as terabytes of zeros.
func Sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}
