package boot

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// KernelLimit bounds an unpacked kernel, in bytes. Debian's unpacks to about 60 MB.
const KernelLimit = 512 << 20

// Offsets into a bzImage: the kernel's Documentation/arch/x86/boot.rst, "The real-mode kernel
// header".
const (
	offSetupSects    = 0x1f1
	offHeaderMagic   = 0x202
	offVersion       = 0x206
	offPayload       = 0x248
	offPayloadLength = 0x24c
	setupHeaderEnd   = 0x250
	payloadVersion   = 0x208 // the first protocol with payload_offset
)

// PVHKernel returns the uncompressed kernel of a bzImage if a VMM can enter that directly, through
// PVH.
func PVHKernel(bzImage []byte) ([]byte, error) {
	vmlinux, err := extractVmlinux(bzImage)
	if err == nil && !hasPVHNote(vmlinux) {
		err = errors.New("the kernel has no PVH note")
	}
	if err != nil {
		return nil, err
	}
	return vmlinux, nil
}

// extractVmlinux returns the ELF kernel that a bzImage holds compressed. It unpacks gzip, zstd and
// lz4 (Debian's) and refuses other formats by their names.
func extractVmlinux(bzImage []byte) ([]byte, error) {
	if len(bzImage) < setupHeaderEnd || string(bzImage[offHeaderMagic:offHeaderMagic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage: no setup header")
	}
	if v := binary.LittleEndian.Uint16(bzImage[offVersion:]); v < payloadVersion {
		return nil, fmt.Errorf("boot protocol %d.%02d is too old to locate the kernel", v>>8, v&0xff)
	}
	sects := uint64(bzImage[offSetupSects])
	if sects == 0 {
		sects = 4 // boot.rst: "for backwards compatibility"
	}
	start := (sects+1)*512 + uint64(binary.LittleEndian.Uint32(bzImage[offPayload:]))
	end := start + uint64(binary.LittleEndian.Uint32(bzImage[offPayloadLength:]))
	if start >= end || end > uint64(len(bzImage)) {
		return nil, fmt.Errorf("the payload, bytes %d to %d, is not within the file's %d",
			start, end, len(bzImage))
	}
	vmlinux, err := decompress(bzImage[start:end])
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(vmlinux, []byte(elf.ELFMAG)) {
		return nil, errors.New("the payload is not an ELF file")
	}
	return vmlinux, nil
}

// decompress unpacks a kernel's payload: a compressed file and four bytes of the unpacked size.
// With gzip these are the end of the file itself.
func decompress(b []byte) ([]byte, error) {
	if len(b) < 8 {
		return nil, errors.New("the payload is too short")
	}
	for _, f := range payloadFormats {
		if bytes.HasPrefix(b, []byte(f.magic)) {
			if f.unpack == nil {
				return nil, fmt.Errorf("the kernel is compressed with %s, which is not supported", f.name)
			}
			out, err := f.unpack(b)
			if err != nil {
				return nil, fmt.Errorf("cannot unpack the kernel with %s: %w", f.name, err)
			}
			return out, nil
		}
	}
	return nil, fmt.Errorf("the kernel is compressed in an unknown way (begins with % x)", b[:4])
}

var payloadFormats = []struct {
	name, magic string
	unpack      func([]byte) ([]byte, error)
}{
	{"gzip", "\x1f\x8b", unpackGzip},
	{"zstd", "\x28\xb5\x2f\xfd", unpackZstd},
	{"lz4", lz4Magic, unpackLZ4},
	{"xz", "\xfd7zXZ\x00", nil},
	{"bzip2", "BZh", nil},
	{"lzma", "\x5d\x00\x00", nil},
	{"lzo", "\x89LZO", nil},
}

func unpackGzip(b []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	r.Multistream(false)
	return readLimited(r, KernelLimit)
}

func unpackZstd(b []byte) ([]byte, error) {
	r, err := zstd.NewReader(bytes.NewReader(b[:len(b)-4]),
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(KernelLimit))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readLimited(r, KernelLimit)
}

// readLimited reads all of r. More than most bytes are an error.
func readLimited(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("more than %d bytes", most)
	}
	return b, err
}

// xenPHYS32Entry is XEN_ELFNOTE_PHYS32_ENTRY, the note with the address at which a VMM enters a
// kernel through PVH (xen/include/public/elfnote.h).
const xenPHYS32Entry = 18

// hasPVHNote reports whether a VMM can enter vmlinux directly.
func hasPVHNote(vmlinux []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		size := uint64(len(vmlinux))
		if p.Type != elf.PT_NOTE || p.Off > size || p.Filesz > size-p.Off {
			continue
		}
		if noteIn(vmlinux[p.Off:p.Off+p.Filesz], f.ByteOrder, "Xen", xenPHYS32Entry) {
			return true
		}
	}
	return false
}

// noteIn searches ELF notes. Each has three words (size of the name, size of the description,
// type), then name and description, padded to four bytes (elf(5)).
func noteIn(b []byte, order binary.ByteOrder, name string, kind uint32) bool {
	for len(b) >= 12 {
		nameSize, descSize := uint64(order.Uint32(b)), uint64(order.Uint32(b[4:]))
		noteKind := order.Uint32(b[8:])
		b = b[12:]
		next := (nameSize+3)&^3 + (descSize+3)&^3
		if nameSize > uint64(len(b)) || next > uint64(len(b)) {
			return false
		}
		if noteKind == kind && string(bytes.TrimRight(b[:nameSize], "\x00")) == name {
			return true
		}
		b = b[next:]
	}
	return false
}
