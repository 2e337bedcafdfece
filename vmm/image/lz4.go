package image

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// lz4Magic begins the legacy frame that `lz4 -l` writes and Linux uses for kernels.
const lz4Magic = "\x02\x21\x4c\x18"

// lz4BlockMax is how much one block of a legacy frame unpacks to.
const lz4BlockMax = 8 << 20

var errLZ4 = errors.New("damaged block")

// unpackLZ4 unpacks a legacy frame (lz4's doc/lz4_Frame_format.md, "Legacy
// frame"): the magic, then blocks with their packed size before them. The
// kernel's build appends the unpacked size as four more bytes, which end the frame.
func unpackLZ4(b []byte) ([]byte, error) {
	want := binary.LittleEndian.Uint32(b[len(b)-4:])
	if want > vmlinuxLimit {
		return nil, fmt.Errorf("unpacked size %d is over %d", want, vmlinuxLimit)
	}
	b = b[len(lz4Magic) : len(b)-4]
	var out []byte
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, errLZ4
		}
		size := binary.LittleEndian.Uint32(b)
		b = b[4:]
		if uint64(size) > uint64(len(b)) {
			return nil, errLZ4
		}
		var err error
		if out, err = unpackLZ4Block(out, b[:size], int(want)); err != nil {
			return nil, err
		}
		b = b[size:]
	}
	if len(out) != int(want) {
		return nil, fmt.Errorf("unpacked to %d bytes in place of %d", len(out), want)
	}
	return out, nil
}

// unpackLZ4Block appends to out what one block unpacks to (lz4's
// doc/lz4_Block_format.md). Blocks of a legacy frame refer to nothing before them.
// out never grows beyond limit bytes.
func unpackLZ4Block(out, b []byte, limit int) ([]byte, error) {
	base := len(out)
	limit = min(limit, base+lz4BlockMax)
	// length reads what follows a nibble of 15: bytes to add, up to the first that is not 255.
	length := func(n int) (int, bool) {
		if n < 15 {
			return n, true
		}
		for len(b) > 0 && n <= lz4BlockMax {
			c := b[0]
			b = b[1:]
			n += int(c)
			if c != 255 {
				return n, true
			}
		}
		return 0, false
	}
	for len(b) > 0 {
		token := b[0]
		b = b[1:]
		literals, ok := length(int(token >> 4))
		if !ok || literals > len(b) || literals > limit-len(out) {
			return nil, errLZ4
		}
		out = append(out, b[:literals]...)
		b = b[literals:]
		if len(b) == 0 {
			return out, nil // the last sequence has literals only
		}
		if len(b) < 2 {
			return nil, errLZ4
		}
		offset := int(binary.LittleEndian.Uint16(b))
		b = b[2:]
		match, ok := length(int(token & 15))
		match += 4
		if !ok || offset == 0 || offset > len(out)-base || match > limit-len(out) {
			return nil, errLZ4
		}
		// A match may overlap what it makes: it is then the repetition of its last offset bytes.
		for match > 0 {
			from := len(out) - offset
			n := min(match, offset)
			out = append(out, out[from:from+n]...)
			match -= n
		}
	}
	return nil, errLZ4
}
