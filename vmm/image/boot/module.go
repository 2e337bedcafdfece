package boot

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// ModuleNames are the kernel modules that a guest loads before it mounts its root disk, in that
// order. Those for PCI are for machines of the type q35.
var ModuleNames = []string{
	"virtio_ring", "virtio", "virtio_mmio",
	"virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"virtio_console", "virtio_blk",
	"failover", "net_failover", "virtio_net",
	"virtio-rng", "virtio_balloon",
	"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport",
	"button", "overlay",
}

// needed are the modules without which no guest is of use. Each is a file or a part of the kernel.
var needed = map[string]bool{
	"virtio_mmio": true, "virtio_pci": true, "virtio_console": true, "virtio_blk": true,
	"virtio_net": true,
}

// moduleLimit bounds one unpacked kernel module, in bytes. The largest of Debian's in
// ModuleNames has 200 KB.
const moduleLimit = 16 << 20

// modulesMost bounds the modules that those of ModuleNames depend on, with themselves.
const modulesMost = 128

// Module is a kernel module, unpacked.
type Module struct {
	Name string
	Data []byte
}

// moduleForms are the ends of the names of modules' files (kernel, scripts/Makefile.modinst).
var moduleForms = []struct {
	end  string
	open func(io.Reader) (io.Reader, error) // nil for one that is not packed
}{
	{".ko", nil},
	{".ko.gz", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{".ko.xz", func(r io.Reader) (io.Reader, error) {
		return xz.ReaderConfig{DictCap: 1 << 20}.NewReader(r) // of most modules
	}},
	{".ko.zst", func(r io.Reader) (io.Reader, error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(moduleLimit))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}},
}

// moduleOf returns the name of the module in a file of that name, empty if it is no module. The
// kernel's names have _ where those of files may have -.
func moduleOf(file string) string {
	for _, f := range moduleForms {
		if name, ok := strings.CutSuffix(file, f.end); ok {
			return strings.ReplaceAll(name, "-", "_")
		}
	}
	return ""
}

// unpackModule returns the content of a module's file of that name.
func unpackModule(file string, packed []byte) ([]byte, error) {
	for _, f := range moduleForms {
		if !strings.HasSuffix(file, f.end) {
			continue
		}
		if f.open == nil {
			return packed, nil
		}
		r, err := f.open(bytes.NewReader(packed))
		if err == nil {
			if c, ok := r.(io.Closer); ok {
				defer c.Close()
			}
			packed, err = readLimited(r, moduleLimit)
		}
		if err != nil {
			return nil, fmt.Errorf("module %s: %w", file, err)
		}
		return packed, nil
	}
	return nil, fmt.Errorf("%s is no module", file)
}

// errNoModule is the error of a module that a kernel lacks.
var errNoModule = errors.New("there is no module")

// moduleSet holds the modules of an installed kernel.
type moduleSet struct {
	files   map[string]string // the path of each module's file
	builtin map[string]bool   // the parts of the kernel
	done    map[string]bool   // those that load has seen
	loaded  []Module          // each behind those that it depends on
}

// load adds a module and those that it depends on to the loaded ones, unless they are parts of the
// kernel.
func (s *moduleSet) load(name string) error {
	key := strings.ReplaceAll(name, "-", "_")
	if s.done[key] || s.builtin[key] {
		return nil
	}
	file := s.files[key]
	if file == "" {
		return fmt.Errorf("%w %s", errNoModule, name)
	}
	if s.done[key] = true; len(s.done) > modulesMost {
		return fmt.Errorf("%s and others need more than %d modules", name, modulesMost)
	}
	packed, err := readFile(file, moduleLimit)
	if err != nil {
		return err
	}
	data, err := unpackModule(file, packed)
	if err != nil {
		return err
	}
	for _, other := range dependencies(data) {
		if err := s.load(other); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	s.loaded = append(s.loaded, Module{name, data})
	return nil
}

// dependencies returns the modules that a module names in its section .modinfo: strings such as
// depends=virtio,virtio_ring (kernel, scripts/mod/modpost.c, add_depends). A file that is no ELF
// names none.
func dependencies(module []byte) []string {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil
	}
	info := f.Section(".modinfo")
	if info == nil {
		return nil
	}
	b, err := info.Data()
	if err != nil {
		return nil
	}
	for line := range strings.SplitSeq(string(b), "\x00") {
		if names, ok := strings.CutPrefix(line, "depends="); ok && names != "" {
			return strings.Split(names, ",")
		}
	}
	return nil
}
