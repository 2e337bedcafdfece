package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

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

// The files that a machine with a root disk boots, beside the disk.
const (
	ownKernelName = "vmlinuz"
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
			b, err = readLimited(z)
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

// makeRoot makes the root disk and all that boots it in dir. program is nil where the root's own init runs. progress goes
// from begin to 1.
func (j *job) makeRoot(ctx context.Context, dir string, layers []*layer, program *vmm.Program, begin float64) (*manifest, error) {
	span := 1 - begin
	r, err := scan(ctx, layers, j.set.o.Limits, func(f float64) { j.progress(begin + span*0.4*f) })
	if err != nil {
		return nil, err
	}
	if program != nil && len(program.Args) > 0 && isInit(program.Args[0]) && r.hasInit() {
		program = nil
	}
	if program != nil && len(program.Args) == 0 {
		program = nil
	}
	if program == nil && !r.hasInit() {
		return nil, fmt.Errorf("it has no /sbin/init and names nothing else to run")
	}
	k := r.findKernel()
	if err := r.write(ctx, dir, func(f float64) { j.progress(begin + span*(0.4+0.6*f)) }); err != nil {
		return nil, err
	}
	m, err := j.makeBoot(dir, k, program)
	if err != nil {
		return nil, err
	}
	m.Root, m.RootFormat = rootName, "raw"
	return m, nil
}

// makeBoot writes into dir what the machine boots, as far as it comes from the image itself: its kernel, if that can be used, and the archive that
// compose puts behind the built-in image's initramfs.
func (j *job) makeBoot(dir string, k *ownKernel, program *vmm.Program) (*manifest, error) {
	m := &manifest{Extra: extraName, Memory: initMemory}
	extra := []entry{fileEntry(strings.TrimPrefix(vmm.RootFile, "/"), 0o644, nil)}
	if k != nil {
		if modules, err := k.files(); err != nil {
			j.set.o.Log.Warn("the image's own kernel cannot be used, the built-in one is", "image", j.item.name, "err", err)
		} else {
			extra = append(extra, modules...)
			m.OwnKernel, m.Kernel = true, ownKernelName
			image := k.image
			if vmlinux, err := extractVmlinux(image); err == nil && hasPVHNote(vmlinux) {
				m.Kernel, image = "vmlinux", vmlinux
			}
			if err := writeSynced(filepath.Join(dir, m.Kernel), image); err != nil {
				return nil, err
			}
		}
	}
	if program != nil {
		text, err := json.Marshal(program)
		if err != nil {
			return nil, err
		}
		extra = append(extra, fileEntry(strings.TrimPrefix(vmm.ProgramFile, "/"), 0o644, text))
		m.Memory = programMemory
	}
	more, err := packInitramfs(extra)
	if err != nil {
		return nil, err
	}
	return m, writeSynced(filepath.Join(dir, extraName), more)
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
		if err := linkOrCopy(s.path(Builtin, base.Kernel), filepath.Join(dir, m.Kernel)); err != nil {
			return err
		}
	}
	initrd, err := os.ReadFile(s.path(Builtin, base.Initrd))
	if err != nil {
		return err
	}
	extra, err := os.ReadFile(filepath.Join(dir, m.Extra))
	if err != nil {
		return err
	}
	// The kernel unpacks one archive after the other; what is in both is the second's.
	const align = 512
	initrd = append(initrd, make([]byte, (align-len(initrd)%align)%align)...)
	if err := writeSynced(filepath.Join(dir, initrdName), append(initrd, extra...)); err != nil {
		return err
	}
	m.Size = 0
	for _, name := range m.files() {
		m.Size += allocated(filepath.Join(dir, name))
	}
	return nil
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
