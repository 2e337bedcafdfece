package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// TestReadQcow2 reads headers of both versions, short ones, and other files.
func TestReadQcow2(t *testing.T) {
	head := make([]byte, qcow2Length)
	copy(head, "QFI\xfb")
	put := func(version uint32) []byte {
		binary.BigEndian.PutUint32(head[4:], version)
		binary.BigEndian.PutUint64(head[24:], 1<<30)
		binary.BigEndian.PutUint32(head[60:], 2)
		binary.BigEndian.PutUint64(head[72:], Qcow2DataFile)
		return bytes.Clone(head)
	}
	for _, x := range []struct {
		name     string
		content  []byte
		features uint64
		ok, none bool
	}{
		{"version 2", put(2)[:72], 0, true, false},
		{"version 3", append(put(3), "more"...), Qcow2DataFile, true, false},
		{"short version 3", put(3)[:103], 0, false, false},
		{"version 4", put(4), 0, false, false},
		{"raw", make([]byte, 512), 0, false, true},
		{"empty", nil, 0, false, true},
	} {
		h, err := ReadQcow2(bytes.NewReader(x.content))
		if (err == nil) != x.ok || errors.Is(err, ErrNoQcow2) != x.none {
			t.Errorf("%s: %v", x.name, err)
		}
		if x.ok && (h.Size != 1<<30 || h.Snapshots != 2 || h.Incompatible != x.features) {
			t.Errorf("%s: %+v", x.name, h)
		}
	}
}
