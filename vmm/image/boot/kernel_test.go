package boot

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// tinyELF is a 64-bit ELF file with one PT_NOTE segment that holds notes.
func tinyELF(notes []byte) []byte {
	const headers = 64 + 56
	b := make([]byte, headers, headers+len(notes))
	copy(b, elf.ELFMAG)
	b[4], b[5], b[6] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	le := binary.LittleEndian
	le.PutUint16(b[16:], uint16(elf.ET_EXEC))
	le.PutUint16(b[18:], uint16(elf.EM_X86_64))
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64) // e_phoff
	le.PutUint16(b[52:], 64) // e_ehsize
	le.PutUint16(b[54:], 56) // e_phentsize
	le.PutUint16(b[56:], 1)  // e_phnum
	le.PutUint16(b[58:], 64) // e_shentsize
	p := b[64:]
	le.PutUint32(p, uint32(elf.PT_NOTE))
	le.PutUint64(p[8:], headers)             // p_offset
	le.PutUint64(p[32:], uint64(len(notes))) // p_filesz
	return append(b, notes...)
}

func note(name string, kind uint32, desc []byte) []byte {
	var b []byte
	b = binary.LittleEndian.AppendUint32(b, uint32(len(name)+1))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = append(b, name...)
	b = append(b, make([]byte, 4-len(name)%4)...)
	b = append(b, desc...)
	return append(b, make([]byte, (4-len(desc)%4)%4)...)
}

// bzImage wraps a payload the way the kernel's build does.
func bzImage(payload []byte) []byte {
	const sects, offset = 2, 0x30
	b := make([]byte, (sects+1)*512+offset)
	b[offSetupSects] = sects
	copy(b[offHeaderMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[offVersion:], 0x20f)
	binary.LittleEndian.PutUint32(b[offPayload:], offset)
	binary.LittleEndian.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	return append(append(b, payload...), "trailer"...)
}

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

func withSize(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(size))
}

func zstded(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	defer w.Close()
	return withSize(w.EncodeAll(b, nil), len(b))
}

// lz4Stored packs b as literals only, in blocks of at most max bytes.
func lz4Stored(b []byte, max int) []byte {
	out := []byte(lz4Magic)
	for rest := b; len(rest) > 0; {
		n := min(len(rest), max)
		var block []byte
		if n < 15 {
			block = []byte{byte(n << 4)}
		} else {
			block = []byte{0xf0}
			for n -= 15; n >= 255; n -= 255 {
				block = append(block, 255)
			}
			block = append(block, byte(n))
			n = min(len(rest), max)
		}
		block = append(block, rest[:n]...)
		out = withSize(out, len(block))
		out = append(out, block...)
		rest = rest[n:]
	}
	return withSize(out, len(b))
}

func TestExtractVmlinux(t *testing.T) {
	want := tinyELF(note("Xen", xenPHYS32Entry, []byte{0, 0, 0, 1}))
	for name, payload := range map[string][]byte{
		"gzip":          gzipped(want),
		"zstd":          zstded(want),
		"lz4":           lz4Stored(want, lz4BlockMax),
		"lz4 in blocks": lz4Stored(want, 7),
	} {
		got, err := extractVmlinux(bzImage(payload))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, error %v", name, len(got), err)
		}
	}
}

func TestExtractVmlinuxRefuses(t *testing.T) {
	good := func() []byte { return bzImage(gzipped(tinyELF(nil))) }
	change := func(f func(b []byte)) []byte { b := good(); f(b); return b }
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"empty":       {nil, "no setup header"},
		"no magic":    {change(func(b []byte) { b[offHeaderMagic] = 'X' }), "no setup header"},
		"old":         {change(func(b []byte) { b[offVersion] = 7 }), "2.07 is too old"},
		"offset":      {change(func(b []byte) { binary.LittleEndian.PutUint32(b[offPayload:], 0xffffffff) }), "not within"},
		"length":      {change(func(b []byte) { binary.LittleEndian.PutUint32(b[offPayloadLength:], 0xffffffff) }), "not within"},
		"no length":   {change(func(b []byte) { binary.LittleEndian.PutUint32(b[offPayloadLength:], 0) }), "not within"},
		"short":       {bzImage([]byte("abc")), "too short"},
		"xz":          {bzImage([]byte("\xfd7zXZ\x00....")), "compressed with xz, which is not supported"},
		"unknown":     {bzImage([]byte("whatever")), "unknown way"},
		"not ELF":     {bzImage(gzipped([]byte("hello"))), "not an ELF"},
		"cut gzip":    {bzImage(gzipped(tinyELF(nil))[:20]), "with gzip"},
		"lz4 size":    {bzImage(withSize(append([]byte(lz4Magic), 1, 2, 3, 4), 1<<31)), "is over"},
		"lz4 less":    {bzImage(withSize([]byte(lz4Magic), 9)), "0 bytes in place of 9"},
		"lz4 damaged": {bzImage(withSize(append([]byte(lz4Magic), 200, 0, 0, 0, 1, 2), 9)), "damaged"},
	} {
		if _, err := extractVmlinux(c.in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

// lz4Frame is a legacy frame of one block, which claims to unpack to size bytes.
func lz4Frame(block string, size int) []byte {
	return withSize(append(withSize([]byte(lz4Magic), len(block)), block...), size)
}

func TestLZ4Block(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		size int
		want string // empty where the frame is damaged
	}{
		"literals":      {"\x30abc", 3, "abc"},
		"match":         {"\x32abc\x03\x00\x50defgh", 14, "abcabcabcdefgh"},
		"overlap":       {"\x1fa\x01\x00\x02\x50bcdef", 27, strings.Repeat("a", 22) + "bcdef"},
		"offset 0":      {"\x11a\x00\x00\x50bcdef", 11, ""},
		"offset far":    {"\x11a\x02\x00\x50bcdef", 11, ""},
		"no end":        {"\x11a\x01\x00\x50", 6, ""},
		"short":         {"\x50abc", 5, ""},
		"long for out":  {"\x1fa\x01\x00\xff\xff\x00\x00", 100, ""},
		"more than all": {"\x50abcde", 4, ""},
		"less than all": {"\x50abcde", 6, ""},
		"endless":       {"\xf0" + strings.Repeat("\xff", 100), 100, ""},
		"empty":         {"", 0, ""},
		"magics":        {strings.Repeat(lz4Magic, 1<<20), 0, ""},
	} {
		frame := lz4Frame(c.in, c.size)
		if name == "magics" {
			frame = withSize([]byte(c.in), 0)
		}
		got, err := unpackLZ4(frame)
		if c.want == "" {
			if err == nil {
				t.Errorf("%s: %q, want an error", name, got)
			}
		} else if err != nil || string(got) != c.want {
			t.Errorf("%s: %q, error %v", name, got, err)
		}
	}
}

// A block refers to nothing in the blocks before it, and each unpacks to 8 MiB at most.
func TestLZ4Blocks(t *testing.T) {
	frame := []byte(lz4Magic)
	for _, block := range []string{"\x50abcde", "\x11a\x05\x00\x50bcdef"} {
		frame = append(withSize(frame, len(block)), block...)
	}
	if got, err := unpackLZ4(withSize(frame, 16)); err == nil {
		t.Errorf("a match in an earlier block: %q", got)
	}
	zeros := make([]byte, lz4BlockMax+1)
	packed := make([]byte, lz4.CompressBlockBound(len(zeros)))
	n, err := lz4.CompressBlock(zeros, packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unpackLZ4(lz4Frame(string(packed[:n]), len(zeros))); err == nil {
		t.Error("a block of more than 8 MiB was taken")
	}
}

func TestPVHNote(t *testing.T) {
	gnu := note("GNU", 3, []byte("build id"))
	for name, c := range map[string]struct {
		in   []byte
		want bool
	}{
		"alone":      {tinyELF(note("Xen", xenPHYS32Entry, make([]byte, 8))), true},
		"second":     {tinyELF(append(gnu, note("Xen", xenPHYS32Entry, make([]byte, 4))...)), true},
		"none":       {tinyELF(gnu), false},
		"other name": {tinyELF(note("Xem", xenPHYS32Entry, nil)), false},
		"hostile":    {tinyELF(bytes.Repeat([]byte{0xff}, 24)), false},
		"not ELF":    {[]byte("hello"), false},
	} {
		if got := hasPVHNote(c.in); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzExtractVmlinux(f *testing.F) {
	vmlinux := tinyELF(note("Xen", xenPHYS32Entry, nil))
	f.Add(bzImage(gzipped(vmlinux)))
	f.Add(bzImage(zstded(vmlinux)))
	f.Add(bzImage(lz4Stored(vmlinux, 7)))
	f.Add(bzImage([]byte("\xfd7zXZ\x00....")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := extractVmlinux(b); err == nil {
			hasPVHNote(got)
		}
	})
}

func FuzzLZ4(f *testing.F) {
	f.Add([]byte("\x1fa\x01\x00\x02\x50bcdef"))
	f.Fuzz(func(t *testing.T, b []byte) {
		const size = 1 << 16
		if got, err := unpackLZ4(lz4Frame(string(b), size)); err == nil && len(got) != size {
			t.Errorf("%d bytes", len(got))
		}
	})
}
