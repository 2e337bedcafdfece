package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/image/boot"
)

// builtinCmdline shows the boot on the serial line and makes it fast. A guest of one user gains
// nothing from mitigations, a random address layout, or the kernel's self-tests. On a busy host the
// clock's watchdog would reject the TSC, and a guest without TSC ticks all the time: an idle one
// used 5 % of a core instead of 0.8 % (TCG).
const builtinCmdline = "console=ttyS0 panic=-1 mitigations=off nokaslr cryptomgr.notests " +
	"random.trust_cpu=on tsc=nowatchdog"

// The least memory in which the built-in image is of use, in bytes. A host's kernel has more in it
// than one for clouds, unless it is as small: Debian's for clouds has 53 MB unpacked.
const (
	builtinMemory = 128 << 20
	hostMemory    = 256 << 20
	smallKernel   = 64 << 20
)

// recipe is part of the inputs' digest. It changes whenever the same files make another image.
const recipe = "3"

// kernelDone is how much of a build is done when its kernel's package is there.
const kernelDone = 0.7

// kernel is a kernel for an image without a disk.
type kernel struct {
	id     string // of its content
	name   string // for people
	memory int64  // least, bytes
	read   func(ctx context.Context) (bzImage []byte, modules []boot.Module, err error)
}

// planBuiltin plans the built-in image, or a copy of it under another name.
func planBuiltin(ctx context.Context, j *job) (*plan, error) {
	if j.item.name != Builtin {
		return j.planCopy()
	}
	k, err := j.cloudKernel(ctx)
	if errors.Is(err, boot.ErrNoPackage) {
		of, hostErr := j.hostKernel()
		if hostErr != nil {
			return nil, fmt.Errorf("%w. Nor can it be made of the host's own kernel: %w", err, hostErr)
		}
		k, err = of, nil
	}
	if err != nil {
		return nil, err
	}
	return j.planMemory(ctx, k)
}

// planHost plans an image of the kernel that the host runs.
func planHost(ctx context.Context, j *job) (*plan, error) {
	k, err := j.hostKernel()
	if err != nil {
		return nil, err
	}
	return j.planMemory(ctx, k)
}

// cloudKernel returns Debian's kernel for clouds. boot.ErrNoPackage.
func (j *job) cloudKernel(ctx context.Context) (*kernel, error) {
	h := &j.set.o.Host
	dir := h.Packages
	if dir == "" {
		dir = j.set.path(blobsName, layersName)
	}
	deb := boot.KeptKernel(dir)
	if !h.Kept || deb == "" {
		progress := func(done float64) { j.progress(kernelDone * done) }
		newest, err := boot.FetchKernel(ctx, dir, progress)
		switch {
		case err == nil:
			deb = newest
		case deb == "" && ctx.Err() == nil && !errors.Is(err, boot.ErrNoPackage):
			return nil, fmt.Errorf("%w; `banger image builtin host` takes the kernel of this host", err)
		case deb == "" || ctx.Err() != nil:
			return nil, err
		default:
			j.set.o.Log.Warn("using the kernel that was fetched before", "package", deb, "err", err)
		}
	}
	j.progress(kernelDone)
	sum, err := host.FileSHA256(deb)
	if err != nil {
		return nil, err
	}
	read := func(ctx context.Context) ([]byte, []boot.Module, error) {
		dir, err := os.MkdirTemp(j.set.path(blobsName, builtName), ".package-")
		if err != nil {
			return nil, nil, err
		}
		defer os.RemoveAll(dir)
		installed, err := boot.Unpack(ctx, deb, dir)
		if err != nil {
			return nil, nil, err
		}
		return j.readKernel(installed)
	}
	return &kernel{"deb " + sum, filepath.Base(deb), builtinMemory, read}, nil
}

// hostKernel returns the kernel that the host runs. Its files are opened with the rights of the
// writer of the source.
func (j *job) hostKernel() (*kernel, error) {
	installed, err := boot.Running(j.set.o.Host.root())
	if err != nil {
		return nil, err
	}
	bzImage, modules, err := j.readKernel(installed)
	if err != nil {
		return nil, err
	}
	parts := [][]byte{bzImage}
	for _, m := range modules {
		parts = append(parts, []byte(m.Name), m.Data)
	}
	read := func(context.Context) ([]byte, []boot.Module, error) { return bzImage, modules, nil }
	return &kernel{"host " + digest(parts...), "Linux " + installed.Release, hostMemory, read}, nil
}

// readKernel reads the files of a kernel with the rights of the writer of the source.
func (j *job) readKernel(installed boot.Installed) (bzImage []byte, modules []boot.Module,
	err error) {
	var missing []string
	err = j.rights.do(func() (err error) {
		bzImage, modules, missing, err = installed.Read()
		return err
	})
	if len(missing) > 0 {
		j.set.o.Log.Warn("the kernel lacks modules that a guest can do without",
			"image", j.item.name, "kernel", installed.Release, "modules", missing)
	}
	return bzImage, modules, err
}

// planMemory plans an image that has no disk: a kernel, and busybox and the agent in memory.
func (j *job) planMemory(ctx context.Context, k *kernel) (*plan, error) {
	agent, err := j.set.o.Host.agent()
	if err != nil {
		return nil, err
	}
	busybox, program, err := j.set.o.Host.busybox()
	if err != nil {
		return nil, err
	}
	// The image's own small files are inputs as well.
	layout, err := boot.Guest{}.Initramfs()
	if err != nil {
		return nil, err
	}
	make := func(ctx context.Context, dir string) (*manifest, error) {
		applets, err := boot.Applets(ctx, program)
		if err != nil {
			return nil, err
		}
		bzImage, modules, err := k.read(ctx)
		if err != nil {
			return nil, err
		}
		j.progress((1 + kernelDone) / 2)
		m, err := writeMemory(dir, bzImage,
			boot.Guest{Agent: agent, Busybox: busybox, Applets: applets, Modules: modules})
		if err != nil {
			return nil, err
		}
		if m.Memory = k.memory; isSmall(filepath.Join(dir, m.Kernel)) {
			m.Memory = builtinMemory
		}
		j.set.o.Log.Info("made an image of the agent and busybox", "image", j.item.name,
			"kernel", k.name, "digest", m.Digest)
		return m, nil
	}
	return &plan{make: make, key: digest([]byte(recipe), []byte(builtinCmdline), layout, agent,
		busybox, []byte(k.id))}, nil
}

// isSmall reports whether a kernel needs as little memory as one for clouds. The size of one that
// is still packed says nothing.
func isSmall(kernel string) bool {
	fi, err := os.Stat(kernel)
	return err == nil && filepath.Base(kernel) == unpackedName && fi.Size() <= smallKernel
}

// unpackedName is the name of a kernel that QEMU starts without its boot loader.
const unpackedName = "vmlinux"

// writeMemory writes the files of an image without a disk into dir.
func writeMemory(dir string, bzImage []byte, guest boot.Guest) (*manifest, error) {
	kernelName := unpackedName
	kernel, err := boot.PVHKernel(bzImage)
	if err != nil {
		kernelName, kernel = "vmlinuz", bzImage // it boots more slowly
	}
	initrd, err := guest.Initramfs()
	if err != nil {
		return nil, err
	}
	m := &manifest{
		Kernel:  kernelName,
		Initrd:  boot.InitrdName,
		Cmdline: builtinCmdline,
		Agent:   agentDigest(guest.Agent),
		Digest:  digest(kernel, initrd, []byte(builtinCmdline)),
		Size:    int64(len(kernel) + len(initrd)),
	}
	for name, b := range map[string][]byte{m.Kernel: kernel, m.Initrd: initrd} {
		if err := host.WriteSynced(filepath.Join(dir, name), b); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// agentDigest returns the digest of an agent's program.
func agentDigest(agent []byte) string {
	sum := sha256.Sum256(agent)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// digest returns the digest of the lengths and bytes of parts: other parts have another, even if
// they join to the same bytes.
func digest(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d\n", len(p))
		h.Write(p)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// planCopy plans a copy of the built-in image.
func (j *job) planCopy() (*plan, error) {
	m, free, err := j.set.holdBuiltin(j.ctx)
	if err != nil {
		return nil, err
	}
	free()
	return &plan{
		key: digest([]byte("builtin"), []byte(m.Digest)),
		make: func(ctx context.Context, dir string) (*manifest, error) {
			now, free, err := j.set.holdBuiltin(ctx)
			if err != nil {
				return nil, err
			}
			defer free()
			if now.Digest != m.Digest {
				return nil, errors.New("the built-in image was made anew meanwhile; try again")
			}
			if err := linkFiles(now, j.set.path(Builtin), dir); err != nil {
				return nil, err
			}
			copied := *now
			return &copied, nil
		},
	}, nil
}

// linkFiles gives the files of an image further names in another directory.
func linkFiles(m *manifest, from, to string) error {
	for _, name := range m.files() {
		if err := host.LinkOrCopy(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	return nil
}

// holdBuiltin returns the manifest of the built-in image, whose kernel, modules and agent other
// images boot with. Its files stay until free is called. The caller holds no lock but the own of
// another image.
func (s *Set) holdBuiltin(ctx context.Context) (m *manifest, free func(), err error) {
	e := s.item(Builtin)
	if e == nil {
		return nil, nil, &vmm.MissingImage{Name: Builtin}
	}
	select {
	case e.own <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	free = func() { <-e.own }
	if m, err = readManifest(s.path(Builtin)); err != nil {
		free()
		return nil, nil, fmt.Errorf("the built-in image is needed and cannot be read: %w", err)
	}
	return m, free, nil
}

// renew makes the built-in image. It shares its files with no other image, and stays the same if
// its inputs have. Other images then get its kernel and its agent.
func (s *Set) renew(j *job, p *plan) error {
	dir := s.path(Builtin)
	if m, err := readManifest(dir); err == nil && m.Inputs == p.key {
		return s.publish(j, m, dir)
	}
	built := s.path(blobsName, builtName)
	if err := host.MakeDirs(built, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(built, ".builtin-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	m, err := p.make(j.ctx, tmp)
	if err != nil {
		return err
	}
	m.Inputs = p.key
	if err := s.publish(j, m, tmp); err != nil {
		return err
	}
	s.recompose()
	return nil
}

// mayBegin refuses a source that the image cannot have now.
func (s *Set) mayBegin(e *item, kind *sourceKind, uid uint32) error {
	if e.name == Builtin {
		if kind.Word != "builtin" && kind.Word != "host" {
			return fmt.Errorf("its source is builtin or host; build another image: %w",
				vmm.ErrNotPermitted)
		}
		return mayHaveBuiltin(uid)
	}
	if kind.Word == "host" {
		return mayOpenFor(uid)
	}
	if kind.alone {
		return nil
	}
	_, err := s.Image(Builtin) // rather now than at the end of the build
	return err
}

// mayHaveBuiltin refuses the built-in image to all but the daemon's user: everybody's VMs boot with
// it.
func mayHaveBuiltin(uid uint32) error {
	if uid != uint32(os.Getuid()) {
		return fmt.Errorf("VMs of all users boot it, so only uid %d, whose daemon this is, makes it: %w",
			os.Getuid(), vmm.ErrNotPermitted)
	}
	return nil
}

// needBuiltin returns the names of the other images that boot with the built-in one's agent.
func (s *Set) needBuiltin() (names []string) {
	for _, i := range s.Infos() {
		m, err := readManifest(s.path(i.Name))
		if i.Name != Builtin && err == nil && m.Root != "" {
			names = append(names, i.Name)
		}
	}
	return names
}
