package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/pierrec/lz4/v4"
)

// lz4Magic begins the legacy frame that `lz4 -l` writes and Linux uses for kernels.
const lz4Magic = "\x02\x21\x4c\x18"

// lz4BlockMax is the most that one block of a legacy frame unpacks to, in bytes.
const lz4BlockMax = 8 << 20

var errLZ4 = errors.New("damaged block")

// unpackLZ4 unpacks a legacy frame (lz4's doc/lz4_Frame_format.md, "Legacy frame"): the magic,
// then blocks, each after its packed size. The kernel's build appends the unpacked size in four
// bytes, which end the frame. The library's own reader of frames is not used: each repeated magic
// costs it a stack frame, so a hostile kernel would end the process.
func unpackLZ4(b []byte) ([]byte, error) {
	want := binary.LittleEndian.Uint32(b[len(b)-4:])
	if want > KernelLimit {
		return nil, fmt.Errorf("unpacked size %d is over %d", want, KernelLimit)
	}
	b = b[len(lz4Magic) : len(b)-4]
	var out []byte
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, errLZ4
		}
		size := binary.LittleEndian.Uint32(b)
		b = b[4:]
		if size == 0 || uint64(size) > uint64(len(b)) {
			return nil, errLZ4
		}
		room := min(lz4BlockMax, int(want)-len(out))
		out = slices.Grow(out, room)
		n, err := lz4.UncompressBlock(b[:size], out[len(out):len(out)+room])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errLZ4, err)
		}
		out, b = out[:len(out)+n], b[size:]
	}
	if len(out) != int(want) {
		return nil, fmt.Errorf("unpacked to %d bytes in place of %d", len(out), want)
	}
	return out, nil
}
