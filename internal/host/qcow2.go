package host

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
)

// Qcow2 is the header of a qcow2 image (docs/interop/qcow2.txt of QEMU, "Header").
type Qcow2 struct {
	Magic           [4]byte
	Version         uint32
	BackingOffset   uint64 // 0 if the image stands alone
	BackingLength   uint32
	ClusterBits     uint32
	Size            uint64 // of the guest's disk, bytes
	Encryption      uint32 // 0 for none
	L1Length        uint32
	L1Offset        uint64
	RefcountOffset  uint64
	RefcountLength  uint32
	Snapshots       uint32
	SnapshotsOffset uint64

	// Incompatible holds features, one per bit, that a reader must know. Version 3 has them.
	Incompatible uint64
}

// Features of Qcow2.Incompatible.
const (
	Qcow2DataFile        = 1 << 2
	Qcow2CompressionType = 1 << 3
)

// qcow2Length is the length of a header of version 3, bytes.
const qcow2Length = 104

// ErrNoQcow2 is the error of ReadQcow2 for a file of another format.
var ErrNoQcow2 = errors.New("it is not a qcow2 image")

// ReadQcow2 reads a header of version 2 or 3.
func ReadQcow2(r io.ReaderAt) (*Qcow2, error) {
	var b [qcow2Length]byte
	n, err := r.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if string(b[:4]) != "QFI\xfb" {
		return nil, ErrNoQcow2
	}
	var h Qcow2
	if _, err := binary.Decode(b[:], binary.BigEndian, &h); err != nil {
		return nil, err
	}
	switch {
	case h.Version == 2 && n >= 72:
		h.Incompatible = 0
	case h.Version != 3 || n < qcow2Length:
		return nil, errors.New("it is a damaged qcow2 image, or one of an unknown version")
	}
	return &h, nil
}

// DiskSize returns the length of a raw or qcow2 disk as a guest sees it, in bytes.
func DiskSize(f *os.File, format string) (int64, error) {
	if format == "raw" {
		info, err := f.Stat()
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	}
	head, err := ReadQcow2(f)
	if err != nil {
		return 0, err
	}
	return int64(min(head.Size, math.MaxInt64)), nil
}
