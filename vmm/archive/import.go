package archive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/host"
	"banger/vmm"
)

// checkWait bounds the driver's check of all disks of an import.
const checkWait = 5 * time.Minute

// Import implements vmm.Archives.
func (a *Archives) Import(ctx context.Context, name string, owner vmm.Owner, r io.Reader,
) (*vmm.VM, error) {
	if !a.imports.Try(owner.UID) {
		return nil, fmt.Errorf("cannot import: %d imports of one user, or %d of all, "+
			"are under way: %w", importsOfOne, importsAtOnce, vmm.ErrBusy)
	}
	defer a.imports.End(owner.UID)
	v, err := a.load(ctx, name, owner, tar.NewReader(host.NewReader(ctx, r, nil)))
	if err != nil {
		return nil, fmt.Errorf("cannot import: %w", err)
	}
	return v, nil
}

func (a *Archives) load(ctx context.Context, name string, owner vmm.Owner, r *tar.Reader,
) (*vmm.VM, error) {
	m, err := readManifest(r)
	if err != nil {
		return nil, err
	}
	image, err := a.imageFor(m)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = m.Name
	}
	settings := func(c *vmm.Config) error {
		c.Image = image.Name
		return m.apply(c)
	}
	fill := func(spec *vmm.Spec, driver vmm.Driver) error {
		err := m.copyDisks(ctx, r, spec)
		if err != nil || len(m.Disks) == 0 {
			return err
		}
		return a.checkDisks(ctx, spec, driver)
	}
	return a.o.Manager.CreateWithDisks(ctx, name, owner, image, settings, fill)
}

// readManifest reads the first member.
func readManifest(r *tar.Reader) (*manifest, error) {
	bad := func(why string) error {
		return fmt.Errorf("it is not an archive of banger: %s: %w", why, vmm.ErrInvalid)
	}
	h, err := r.Next()
	if err != nil || h.Name != manifestName || h.Size > maxManifest || host.Sparse(h) {
		return nil, bad("it does not begin with " + manifestName)
	}
	m := &manifest{}
	text, err := io.ReadAll(r)
	if err == nil {
		err = errors.Join(json.Unmarshal(text, m), json.Unmarshal(text, &m.settings))
	}
	switch {
	case err != nil:
		return nil, bad(err.Error())
	case m.Version != manifestVersion:
		return nil, fmt.Errorf("it has version %d, and this banger reads version %d: %w",
			m.Version, manifestVersion, vmm.ErrInvalid)
	}
	return m, nil
}

// apply gives a VM the settings of the manifest. Those that it lacks stay as they are.
func (m *manifest) apply(c *vmm.Config) error {
	for _, s := range vmm.Settings {
		text, ok := m.settings[s.Archive]
		if s.Archive == "" || !ok {
			continue
		}
		if err := json.Unmarshal(text, s.Field(c)); err != nil {
			return fmt.Errorf("its %s cannot be read (%v): %w", s.Archive, err, vmm.ErrInvalid)
		}
	}
	return nil
}

// imageFor returns the image with the manifest's digest, preferably that of the same name. A VM
// without a system disk may have any image of that name that has no disk: the built-in one of
// another version, for example.
func (a *Archives) imageFor(m *manifest) (*vmm.Image, error) {
	for _, name := range append([]string{m.Image}, a.o.Images.Names()...) {
		image, err := a.o.Images.Image(name)
		if err == nil && image.Digest == m.ImageDigest {
			return &image, nil
		}
	}
	here := "no image has that name here"
	if image, err := a.o.Images.Image(m.Image); err == nil {
		isSystem := func(d disk) bool { return d.Name == vmm.DiskOverlay }
		if image.Root == "" && !slices.ContainsFunc(m.Disks, isSystem) {
			return &image, nil
		}
		here = fmt.Sprintf("the image of that name has %q here", image.Digest)
	}
	return nil, fmt.Errorf("it needs the image %.64q of digest %.80q, made from %.200q, and %s: "+
		"make an image of any name from the same source first: %w",
		m.Image, m.ImageDigest, m.ImageSource, here, vmm.ErrNotFound)
}

// copyDisks writes the members that are the VM's disks and compares their digests. Anything else in
// the archive is an error.
func (m *manifest) copyDisks(ctx context.Context, r *tar.Reader, spec *vmm.Spec) error {
	if len(m.Disks) > len(spec.Disks) {
		return fmt.Errorf("it has %d disks, the VM %d: %w",
			len(m.Disks), len(spec.Disks), vmm.ErrInvalid)
	}
	for _, d := range m.Disks {
		i := slices.IndexFunc(spec.Disks, func(own vmm.Disk) bool {
			return filepath.Base(own.Path) == d.Name
		})
		h, err := r.Next()
		if err != nil || i < 0 ||
			h.Name != d.Name || h.Typeflag != tar.TypeReg || h.Size != d.Size {
			return fmt.Errorf("%.64q is not the disk that %s describes (%v): %w",
				d.Name, manifestName, err, vmm.ErrInvalid)
		}
		if host.Sparse(h) {
			return fmt.Errorf("the disk %s is a sparse member, "+
				"whose holes the archive leaves out: %w", d.Name, vmm.ErrInvalid)
		}
		if err := d.copyTo(ctx, spec.Disks[i].Path, r); err != nil {
			return err
		}
	}
	if _, err := r.Next(); err != io.EOF {
		return fmt.Errorf("it does not end after its disks (%v): %w", err, vmm.ErrInvalid)
	}
	return nil
}

func (d *disk) copyTo(ctx context.Context, path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	digest := sha256.New()
	_, err = host.CopySparse(ctx, f, io.TeeReader(r, digest), host.Limit{Read: d.Size})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if hex.EncodeToString(digest.Sum(nil)) != d.SHA256 {
		return fmt.Errorf("the disk %s is not what was exported: its digest differs: %w",
			d.Name, vmm.ErrInvalid)
	}
	return nil
}

// checkDisks has the driver check the disks, as a uid of this import alone. Afterwards the daemon
// owns them.
func (a *Archives) checkDisks(ctx context.Context, spec *vmm.Spec, driver vmm.Driver,
) (err error) {
	job, err := a.o.Jobs.Begin()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // before another job may have the uid
			err = errors.Join(err, job.Kill(), os.RemoveAll(spec.Dir))
		}
		err = errors.Join(err, job.End())
	}()
	spec.UID, spec.GID = job.UID, job.UID
	for _, d := range append([]vmm.Disk{{Path: vmm.DisksDir(spec.Dir)}}, spec.Disks...) {
		err := os.Chown(d.Path, spec.UID, spec.GID)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	bounded, cancel := context.WithTimeout(ctx, checkWait)
	defer cancel()
	if err := driver.ImportDisks(bounded, spec); err != nil {
		return err
	}
	return errors.Join(job.Kill(), reclaim(spec))
}

// reclaim makes the daemon the owner of checked disks. The program that checked them read
// strangers' bytes: each disk must be a regular file with one name, and no other file may be there.
func reclaim(spec *vmm.Spec) error {
	dir := vmm.DisksDir(spec.Dir)
	if err := os.Chown(dir, os.Getuid(), os.Getgid()); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !slices.ContainsFunc(spec.Disks, func(d vmm.Disk) bool { return d.Path == path }) {
			return fmt.Errorf("the check of its disks made a file %.64q: %w",
				e.Name(), vmm.ErrInvalid)
		}
		f, err := host.OpenRegular(path, os.O_RDONLY, host.AnyOwner)
		if err != nil {
			return fmt.Errorf("the disk %.64q is no file of its own (%v): %w",
				e.Name(), err, vmm.ErrInvalid)
		}
		if err := errors.Join(f.Chown(os.Getuid(), os.Getgid()), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
