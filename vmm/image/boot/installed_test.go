package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// moduleELF returns an object file with a section .modinfo, as the kernel's build makes modules.
func moduleELF(depends string) []byte {
	names := "\x00.modinfo\x00.shstrtab\x00"
	info := "license=GPL\x00depends=" + depends + "\x00name=x\x00"
	const header, section = 64, 64
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	put := func(values ...any) {
		for _, v := range values {
			binary.Write(&b, binary.LittleEndian, v)
		}
	}
	at := uint64(header + len(info) + len(names))
	put(uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), at, uint32(0), uint16(header), uint16(0), uint16(0),
		uint16(section), uint16(3), uint16(2))
	b.WriteString(info + names)
	put(make([]byte, section))
	for _, s := range []struct {
		name, kind  uint32
		offset, len int
	}{{1, 1, header, len(info)}, {10, 3, header + len(info), len(names)}} {
		put(s.name, s.kind, uint64(0), uint64(0), uint64(s.offset), uint64(s.len), uint32(0), uint32(0), uint64(1), uint64(0))
	}
	return b.Bytes()
}

// pack packs a module as the end of its file's name says.
func pack(t *testing.T, file string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w interface {
		Write([]byte) (int, error)
		Close() error
	}
	var err error
	switch filepath.Ext(file) {
	case ".gz":
		w = gzip.NewWriter(&b)
	case ".xz":
		w, err = xz.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	default:
		return data
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// hostRoot makes the root of a host with a kernel file and modules with what they depend on, packed
// as end says.
func hostRoot(t *testing.T, kernel, dir, end string, modules map[string]string, builtin string) string {
	t.Helper()
	root := t.TempDir()
	files := map[string][]byte{kernel: []byte("kernel"), dir + "/modules.builtin": []byte(builtin)}
	for name, depends := range modules {
		file := dir + "/kernel/drivers/" + name + end
		files[file] = pack(t, file, moduleELF(depends))
	}
	for name, data := range files {
		name = filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// intoStore puts links in the places of a directory and a file of modules, as NixOS does. Some lead
// in circles, to sources, and nowhere.
func intoStore(t *testing.T, dir string) {
	t.Helper()
	store := filepath.Join(t.TempDir(), "kernel")
	net := filepath.Join(store, "drivers/virtio_net.ko.xz")
	err := errors.Join(os.Rename(filepath.Join(dir, "kernel"), store), os.Symlink(store, filepath.Join(dir, "kernel")),
		os.Rename(net, filepath.Join(store, "..", "net")), os.Symlink(filepath.Join(store, "..", "net"), net),
		os.Symlink("..", filepath.Join(store, "drivers/up")), os.Symlink("/none", filepath.Join(store, "none.ko")),
		os.Symlink("/", filepath.Join(dir, "build")))
	if err != nil {
		t.Fatal(err)
	}
}

// TestInstalled reads kernels as distributions install them.
func TestInstalled(t *testing.T) {
	const release = "6.9-x"
	debian := map[string]string{}
	for _, m := range ModuleNames {
		debian[m] = ""
	}
	debian["virtio"], debian["virtio_net"] = "virtio_ring", "net_failover,virtio"
	fedora := map[string]string{"virtio_blk": "", "virtio_net": "net_failover,dimlib", "net_failover": "failover", "failover": "", "dimlib": "",
		"virtio-rng": ""}
	const inKernel = "kernel/drivers/virtio/virtio_mmio.ko\nkernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/char/virtio_console.ko\n"
	all := map[string]string{"virtio_net": "", "virtio_blk": ""}
	for _, x := range []struct {
		name, kernel, dir, end string
		modules                map[string]string
		builtin                string
		loaded                 string // some of them, in order
	}{
		{"Debian", "boot/vmlinuz-6.9-x", "lib/modules/6.9-x", ".ko", debian, "", strings.Join(ModuleNames, " ")},
		{"Fedora", "lib/modules/6.9-x/vmlinuz", "lib/modules/6.9-x", ".ko.xz", fedora, inKernel,
			"virtio_blk failover net_failover dimlib virtio_net virtio-rng"},
		{"Arch", "usr/lib/modules/6.9-x/vmlinuz", "usr/lib/modules/6.9-x", ".ko.zst", all, inKernel, "virtio_blk virtio_net"},
		{"NixOS", "run/booted-system/kernel", "run/booted-system/kernel-modules/lib/modules/6.9-x", ".ko.xz", all, inKernel,
			"virtio_blk virtio_net"},
		{"gzip", "boot/vmlinuz-6.9-x", "lib/modules/6.9-x", ".ko.gz", all, inKernel, "virtio_blk virtio_net"},
	} {
		t.Run(x.name, func(t *testing.T) {
			root := hostRoot(t, x.kernel, x.dir, x.end, x.modules, x.builtin)
			if x.name == "NixOS" {
				intoStore(t, filepath.Join(root, x.dir))
			}
			bzImage, modules, missing, err := Installed{root, release}.Read()
			if err != nil || string(bzImage) != "kernel" {
				t.Fatalf("kernel %q, error %v", bzImage, err)
			}
			var names []string
			for _, m := range modules {
				names = append(names, m.Name)
				if !bytes.HasPrefix(m.Data, []byte("\x7fELF")) {
					t.Errorf("%s is not unpacked", m.Name)
				}
			}
			if diff := cmp.Diff(strings.Fields(x.loaded), names); diff != "" {
				t.Error(diff)
			}
			if wants := x.name != "Debian"; wants != (len(missing) > 0) {
				t.Errorf("missing: %q", missing)
			}
		})
	}
}

// TestInstalledRefused expects a sentence where a kernel cannot be read, and no endless work.
func TestInstalledRefused(t *testing.T) {
	const release, dir, kernel = "6.9-x", "lib/modules/6.9-x", "boot/vmlinuz-6.9-x"
	const inKernel = "a/virtio_mmio.ko\na/virtio_pci.ko\na/virtio_console.ko\na/virtio_blk.ko\na/virtio_net.ko\n"
	change := func(f func(root string) error) string {
		root := hostRoot(t, kernel, dir, ".ko", nil, inKernel)
		if err := f(root); err != nil {
			t.Fatal(err)
		}
		return root
	}
	many := map[string]string{}
	chain := "virtio_net"
	for i := range modulesMost + 1 {
		next := "m" + strings.Repeat("x", i)
		many[chain], chain = next, next
	}
	many[chain] = ""
	for name, x := range map[string]struct{ root, want string }{
		"no kernel": {change(func(root string) error { return os.Remove(filepath.Join(root, kernel)) }),
			"the host's kernel 6.9-x is neither"},
		"no modules": {change(func(root string) error { return os.RemoveAll(filepath.Join(root, "lib")) }),
			"the modules of the host's kernel 6.9-x are not"},
		"a kernel that is a pipe": {change(func(root string) error {
			name := filepath.Join(root, kernel)
			return errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o644))
		}), "is not a regular file"},
		"a huge kernel": {change(func(root string) error { return os.Truncate(filepath.Join(root, kernel), memberLimit+1) }),
			"more than 268435456 bytes"},
		"no network": {hostRoot(t, kernel, dir, ".ko", nil, strings.Replace(inKernel, "net", "x", 1)), "there is no module virtio_net"},
		"a dependency": {hostRoot(t, kernel, dir, ".ko", map[string]string{"virtio_net": "gone"}, strings.Replace(inKernel, "virtio_net", "x", 1)),
			"module virtio_net: there is no module gone"},
		"a circle": {hostRoot(t, kernel, dir, ".ko",
			map[string]string{"overlay": "button", "button": "overlay"}, inKernel), ""},
		"too many": {hostRoot(t, kernel, dir, ".ko", many, strings.Replace(inKernel, "virtio_net", "x", 1)), "more than 128 modules"},
	} {
		_, _, _, err := Installed{x.root, release}.Read()
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %v; want %q", name, err, x.want)
		}
	}
	if _, err := UnpackedIn(t.TempDir()); err == nil {
		t.Error("an empty package has a kernel")
	}
	if _, err := readFile(filepath.Join(t.TempDir(), "x"), 1); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// FuzzModule reads modules and what they depend on.
func FuzzModule(f *testing.F) {
	f.Add("a.ko", moduleELF("a,b"))
	f.Add("a.ko.xz", []byte("\xfd7zXZ\x00"))
	f.Add("a.ko.zst", []byte("\x28\xb5\x2f\xfd"))
	f.Fuzz(func(t *testing.T, file string, b []byte) {
		if data, err := unpackModule(file, b); err == nil {
			dependencies(data)
		}
	})
}
