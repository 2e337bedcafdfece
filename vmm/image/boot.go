package image

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"banger/internal/host"
	"banger/vmm"

	"github.com/klauspost/compress/zstd"
)

// recipeRoot is part of the key of everything with a root disk: it changes whenever the same layers make another image.
const recipeRoot = "1"

// rootCmdline is added to the built-in image's for one with a root disk: the agent finds the interface by the name that the kernel gives it.
const rootCmdline = " net.ifnames=0"

// The least memory of an image whose kernel starts one program, and of one with an init that starts many.
const (
	programMemory = 128 << 20
	initMemory    = 256 << 20
)

// moduleLimit bounds what one kernel module unpacks to; Debian's largest of moduleNames has 200 KB.
const moduleLimit = 16 << 20

// The files that a machine with a root disk boots, beside the disk.
const (
	ownKernelName = "vmlinuz"
	vmlinuxName   = "vmlinux" // of one that is entered through PVH
	extraName     = "extra.cpio"
	initrdName    = "initramfs.cpio"
)

// ownKernel is the kernel of a root file system, with what the agent needs of its modules to come to the root disk.
type ownKernel struct {
	version string
	image   []byte
	modules map[string]*[]byte // by the name of the file, in whichever form it is there
	builtin []byte             // modules.builtin: which modules are no files
}

// findKernel looks for the newest kernel and its modules, whose content write then keeps; nil if there is none.
func (r *rootfs) findKernel() *ownKernel {
	boot := r.tree.follow("/boot")
	if boot == nil {
		return nil
	}
	k := &ownKernel{modules: map[string]*[]byte{}}
	var image *node
	for name, n := range boot.children {
		version, ok := strings.CutPrefix(name, "vmlinuz-")
		if ok && n.mode&modeType == modeReg && (image == nil || newer(version, k.version)) && r.modules(version) != nil {
			k.version, image = version, n
		}
	}
	if image == nil {
		return nil
	}
	image.keep = &k.image
	dir := r.modules(k.version)
	if n := dir.children["modules.builtin"]; n != nil {
		n.keep = &k.builtin
	}
	wanted := map[string]bool{}
	for _, m := range moduleNames {
		wanted[m+".ko"], wanted[m+".ko.zst"] = true, true
	}
	var walk func(n *node)
	walk = func(n *node) {
		for name, c := range n.children {
			switch {
			case c.children != nil:
				walk(c)
			case wanted[name] && c.mode&modeType == modeReg:
				c.keep = new([]byte)
				k.modules[name] = c.keep
			}
		}
	}
	walk(dir)
	return k
}

// modules is the directory of a kernel's modules.
func (r *rootfs) modules(version string) *node {
	n := r.tree.follow("/lib/modules/" + version)
	if n == nil || n.children == nil {
		return nil
	}
	return n
}

// newer compares versions as people do: runs of digits by their value.
func newer(a, b string) bool {
	for a != "" && b != "" {
		an, bn := strings.TrimLeft(a, "0123456789"), strings.TrimLeft(b, "0123456789")
		x, y := strings.TrimLeft(a[:len(a)-len(an)], "0"), strings.TrimLeft(b[:len(b)-len(bn)], "0")
		if c := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); c != 0 {
			return c > 0
		}
		a, b = an, bn
		if a == "" || b == "" {
			break
		}
		if a[0] != b[0] {
			return a[0] > b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) > len(b)
}

// files gives the kernel and the modules of moduleNames that are no part of it, unpacked, or says why it cannot be used.
func (k *ownKernel) files() (entries []entry, err error) {
	if len(k.image) == 0 {
		return nil, fmt.Errorf("/boot/vmlinuz-%s is empty or too long", k.version)
	}
	var list strings.Builder
	for _, m := range moduleNames {
		var b []byte
		if p := k.modules[m+".ko"]; p != nil {
			b = *p
		} else if p := k.modules[m+".ko.zst"]; p != nil {
			z, err := zstd.NewReader(bytes.NewReader(*p), zstd.WithDecoderConcurrency(1))
			if err != nil {
				return nil, err
			}
			b, err = readLimited(z, moduleLimit)
			z.Close()
			if err != nil {
				return nil, fmt.Errorf("module %s: %w", m, err)
			}
		} else if k.isBuiltin(m) {
			continue
		} else {
			return nil, fmt.Errorf("kernel %s has no module %s.ko", k.version, m)
		}
		name := path.Join("lib/modules", m+".ko")
		entries = append(entries, fileEntry(name, 0o644, b))
		list.WriteString("/" + name + "\n")
	}
	return append(entries, fileEntry(moduleList, 0o644, []byte(list.String()))), nil
}

func (k *ownKernel) isBuiltin(module string) bool {
	for _, line := range strings.Fields(string(k.builtin)) {
		if path.Base(line) == module+".ko" {
			return true
		}
	}
	return false
}

// makeBoot writes into dir what the machine boots, as far as it comes from the image itself: its
// kernel, if that can be used, and the archive that compose puts behind the built-in image's
// initramfs.
func makeBoot(dir string, k *ownKernel, program *vmm.Program) (outcome, error) {
	done := outcome{Done: true, Program: program != nil}
	extra := []entry{fileEntry(strings.TrimPrefix(vmm.RootFile, "/"), 0o644, nil)}
	if k != nil {
		if modules, err := k.files(); err != nil {
			done.Warning = host.OneLine([]byte(err.Error()))
		} else {
			extra = append(extra, modules...)
			done.OwnKernel = true
			name, image := ownKernelName, k.image
			if vmlinux, err := extractVmlinux(image); err == nil && hasPVHNote(vmlinux) {
				done.PVH, name, image = true, vmlinuxName, vmlinux
			}
			if err := host.WriteSynced(filepath.Join(dir, name), image); err != nil {
				return outcome{}, err
			}
		}
	}
	if program != nil {
		text, err := json.Marshal(program)
		if err != nil {
			return outcome{}, err
		}
		extra = append(extra, fileEntry(strings.TrimPrefix(vmm.ProgramFile, "/"), 0o644, text))
	}
	more, err := packInitramfs(extra)
	if err != nil {
		return outcome{}, err
	}
	if len(more) > extraLimit {
		return outcome{}, fmt.Errorf("its kernel's modules have more than %d bytes", extraLimit)
	}
	return done, host.WriteSynced(filepath.Join(dir, extraName), more)
}

// compose makes a built image, whose files are in dir, one that boots with the agent of now: it adds what comes from the built-in image.
func (s *Set) compose(dir string, m *manifest) error {
	base, err := s.builtin()
	if err != nil {
		return err
	}
	m.Base, m.Cmdline, m.Initrd = base.Digest, base.Cmdline+rootCmdline, initrdName
	if !m.OwnKernel {
		m.Kernel = base.Kernel
		if err := host.LinkOrCopy(s.path(Builtin, base.Kernel), filepath.Join(dir, m.Kernel)); err != nil {
			return err
		}
	}
	// The kernel unpacks one archive after the other; what is in both is the second's.
	to, extra := filepath.Join(dir, initrdName), filepath.Join(dir, m.Extra)
	if err := joinFiles(to, s.path(Builtin, base.Initrd), extra); err != nil {
		return err
	}
	m.Size = 0
	for _, name := range m.files() {
		m.Size += allocated(filepath.Join(dir, name))
	}
	return nil
}

// joinFiles writes two archives one behind the other, the second at a multiple of 512 bytes.
func joinFiles(to, first, second string) error {
	const align = 512
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	for _, name := range []string{first, second} {
		if err := appendFile(f, name, align); err != nil {
			f.Close()
			return err
		}
	}
	return host.CloseSynced(f)
}

// appendFile writes a file's content behind what is in f, at a multiple of align bytes.
func appendFile(f *os.File, name string, align int64) error {
	from, err := os.Open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := f.Seek((align-at%align)%align, io.SeekCurrent); err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return err
}

// recompose gives the images that were built with another daemon's built-in image the agent, and perhaps the kernel, of this one's.
func (s *Set) recompose() {
	base, err := s.builtin()
	if err != nil {
		return // nothing can be built, either; each build says so
	}
	for _, i := range s.Infos() {
		m, err := readManifest(s.path(i.Name))
		if i.Status != vmm.ImageReady || err != nil || m.Extra == "" || m.Base == base.Digest {
			continue
		}
		if e := s.item(i.Name); e != nil {
			if err := s.install(e, m, s.path(i.Name)); err != nil {
				s.o.Log.Error("cannot give an image this version's agent", "image", i.Name, "err", err)
			}
		}
	}
}

// allocated is what a file takes on the host, 0 if it cannot be told.
func allocated(name string) int64 {
	b, err := measure(name)
	if err != nil {
		return 0
	}
	return b.bytes
}
