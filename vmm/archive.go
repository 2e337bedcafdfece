package vmm

import (
	"archive/tar"
	"bytes"
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

	"github.com/google/uuid"
)

// An archive is a VM as one file: a tar (POSIX.1-2001) whose first member is archiveManifest, followed by the disks that it lists, in that
// order, as qcow2 images without snapshots; of the system disk only what differs from its image's, which must be there where it is imported.
const (
	archiveManifest    = "banger.json"
	archiveVersion     = 1
	maxArchiveManifest = 64 << 10
)

// Imports at once, of all users and of one.
const (
	importsAtOnce = 32
	importsOfOne  = 4
)

type manifest struct {
	Version     int            `json:"version"`
	Name        string         `json:"name"`
	Image       string         `json:"image"`
	ImageDigest string         `json:"image_digest"`
	ImageSource string         `json:"image_source,omitempty"` // to be told; nothing is made of it
	CPUs        int            `json:"cpus"`
	Memory      int64          `json:"memory"`
	Disk        int64          `json:"disk"`
	Cmdline     string         `json:"cmdline"`
	VMM         string         `json:"vmm"`
	IdleTimeout time.Duration  `json:"idle_timeout_nsec"` // NoLimit is -1
	StopTimeout time.Duration  `json:"stop_timeout_nsec"`
	Disks       []manifestDisk `json:"disks"`
}

type manifestDisk struct {
	Name   string `json:"name"` // DiskOverlay or DiskWork
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Archive is an exported VM, to be read from. It holds copies of the disks that have no name any more: what becomes of the VM does
// not change it, and nothing is left of it when it is closed or the daemon dies. The caller closes it.
type Archive struct {
	parts []io.ReaderAt
	ends  []int64 // of the parts, in the whole
	files []*os.File
}

// ReadAt implements io.ReaderAt.
func (a *Archive) ReadAt(p []byte, off int64) (int, error) {
	n, begin := 0, int64(0)
	for i, end := range a.ends {
		for n < len(p) && off < end {
			m, err := a.parts[i].ReadAt(p[n:min(int64(len(p)), int64(n)+end-off)], off-begin)
			n, off = n+m, off+int64(m)
			if err != nil && (!errors.Is(err, io.EOF) || off < end) {
				return n, errors.Join(err, io.ErrUnexpectedEOF)
			}
		}
		begin = end
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close lets go of the copies.
func (a *Archive) Close() error {
	var errs []error
	for _, f := range a.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func (a *Archive) add(part io.ReaderAt, size int64) {
	begin := int64(0)
	if n := len(a.ends); n > 0 {
		begin = a.ends[n-1]
	}
	a.parts, a.ends = append(a.parts, part), append(a.ends, begin+size)
}

// member adds a member of the tar.
func (a *Archive) member(name string, content io.ReaderAt, size int64) error {
	var head bytes.Buffer
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: size, ModTime: time.Unix(time.Now().Unix(), 0)}
	if err := tar.NewWriter(&head).WriteHeader(h); err != nil {
		return err
	}
	a.add(bytes.NewReader(head.Bytes()), int64(head.Len()))
	a.add(content, size)
	if rest := (512 - size%512) % 512; rest > 0 {
		a.add(bytes.NewReader(make([]byte, rest)), rest)
	}
	return nil
}

// Export makes an archive of a VM. It needs as much room beside the disks as the archive will have. ErrBusy unless the VM is stopped or failed. When ctx ends
// so does the work.
func (v *VM) Export(ctx context.Context) (*Archive, error) {
	var a *Archive
	doing := "cannot export " + v.Snapshot().Name
	err := v.during(context.WithoutCancel(ctx), Export, doing, func(work context.Context) (err error) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		work, cancel := context.WithCancel(work)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		a, err = v.export(work)
		return err
	})
	return a, err
}

func (v *VM) export(ctx context.Context) (_ *Archive, err error) {
	s := v.Snapshot()
	if s.State != Stopped && s.State != Failed {
		return nil, fmt.Errorf("it is %s: stop it first: %w", s.State, ErrBusy)
	}
	if err := v.tidy(ctx); err != nil {
		return nil, err
	}
	spec, driver, err := v.diskSpec()
	if err != nil {
		return nil, err
	}
	c := &s.Config
	m := manifest{Version: archiveVersion, Name: s.Name, Image: c.Image, ImageDigest: spec.Image.Digest, ImageSource: spec.Image.Source, CPUs: c.CPUs, Memory: c.Memory,
		Disk: c.Disk, Cmdline: c.Cmdline, VMM: c.VMM, IdleTimeout: c.IdleTimeout, StopTimeout: c.StopTimeout}
	a := &Archive{}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if len(spec.Disks) > 0 {
		if driver == nil {
			return nil, ErrUnsupported
		}
		if err := v.makeDisks(ctx, spec, driver); err != nil {
			return nil, err
		}
	}
	for _, d := range spec.Disks {
		f, err := driver.ExportDisk(ctx, spec, d)
		if err != nil {
			return nil, err
		}
		a.files = append(a.files, f)
		h := sha256.New()
		size, err := io.Copy(h, host.NewReader(ctx, f, nil))
		if err != nil {
			return nil, err
		}
		m.Disks = append(m.Disks, manifestDisk{filepath.Base(d.Path), size, hex.EncodeToString(h.Sum(nil))})
	}
	text, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return nil, err
	}
	text = append(text, '\n')
	if err := a.member(archiveManifest, bytes.NewReader(text), int64(len(text))); err != nil {
		return nil, err
	}
	for i, d := range m.Disks {
		if err := a.member(d.Name, a.files[i], d.Size); err != nil {
			return nil, err
		}
	}
	a.add(bytes.NewReader(make([]byte, 1024)), 1024)
	v.logf("exported")
	return a, nil
}

// Import makes a VM of an archive, which may be anybody's: nothing but its settings and its disks is taken from it, and all of it is verified before there is a VM. It
// reads r to the archive's end and not beyond. An empty name stands for the one that the VM had. After an error, or a crash, nothing is left.
// ErrInvalid for what is no archive, ErrNotFound if its image is not here, ErrExists, ErrBusy if too many are under way.
func (m *Manager) Import(ctx context.Context, name string, owner Owner, r io.Reader) (*VM, error) {
	if !m.imports.Try(owner.UID) {
		return nil, fmt.Errorf("cannot import: %d imports of one user, or %d of all, are under way: %w",
			importsOfOne, importsAtOnce, ErrBusy)
	}
	defer m.imports.End(owner.UID)
	id := uuid.NewString()
	dir := filepath.Join(m.vmsDir, id) // the next start removes it if it has no record
	v, err := m.importTo(ctx, dir, id, name, owner, host.NewReader(ctx, r, nil))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot import: %w", err), os.RemoveAll(dir))
	}
	return v, nil
}

func (m *Manager) importTo(ctx context.Context, dir, id, name string, owner Owner, r io.Reader) (*VM, error) {
	archive := tar.NewReader(r)
	about, c, image, err := m.readManifest(archive)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = about.Name
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if !m.take(name) { // until the end: nobody uploads for a name that is gone
		return nil, fmt.Errorf("%s: %w", name, ErrExists)
	}
	defer m.release(name)
	spec := &Spec{ID: id, Name: name, StateDir: m.o.StateDir, Dir: dir, Config: *c, Image: *image, Disks: disksOf(dir, c, image), UID: -1, GID: -1}
	if err := makeDir(spec); err != nil {
		return nil, err
	}
	if err := takeDisks(ctx, archive, about, spec); err != nil {
		return nil, err
	}
	if len(about.Disks) > 0 {
		if err := m.checkDisks(ctx, spec); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	record := Record{ID: id, Name: name, Config: *c, Owner: owner, Created: now, Touched: now, State: Stopped}
	if image.Root != "" {
		record.Base = image.Digest
	}
	if err := m.o.Store.Insert(context.WithoutCancel(ctx), &record); err != nil {
		return nil, err
	}
	v := m.newVM(record)
	t, _ := v.tryAcquire() // nobody else knows the VM
	defer t.release()
	m.insert(v)
	v.emit(EventCreate, "imported")
	return v, nil
}

// readManifest reads the first member and makes settings of it that can be here.
func (m *Manager) readManifest(archive *tar.Reader) (*manifest, *Config, *Image, error) {
	bad := func(why string) error { return fmt.Errorf("it is not an archive of banger: %s: %w", why, ErrInvalid) }
	h, err := archive.Next()
	if err != nil || h.Name != archiveManifest || h.Size > maxArchiveManifest || host.Sparse(h) {
		return nil, nil, nil, bad("it does not begin with " + archiveManifest)
	}
	var about manifest
	text, err := io.ReadAll(archive)
	if err == nil {
		err = json.Unmarshal(text, &about)
	}
	switch {
	case err != nil:
		return nil, nil, nil, bad(err.Error())
	case about.Version != archiveVersion:
		return nil, nil, nil, fmt.Errorf("it is of version %d, this banger knows %d: %w", about.Version, archiveVersion, ErrInvalid)
	}
	image, err := m.imageLike(&about)
	if err != nil {
		return nil, nil, nil, err
	}
	c := m.o.Defaults
	c.Image, c.CPUs, c.Memory, c.Disk, c.Cmdline, c.VMM = image.Name, about.CPUs, about.Memory, about.Disk, about.Cmdline, about.VMM
	c.IdleTimeout, c.StopTimeout = about.IdleTimeout, about.StopTimeout
	if err := m.checkConfig(&Config{Net: c.Net}, &c); err != nil {
		return nil, nil, nil, err
	}
	return &about, &c, image, nil
}

// imageLike gives the image of the digest, of that name if there are several. For a VM without a system disk any that has that name and no disk will do, as
// the built-in one of another version.
func (m *Manager) imageLike(about *manifest) (*Image, error) {
	for _, n := range append([]string{about.Image}, m.o.Images.Names()...) {
		if image, err := m.o.Images.Image(n); err == nil && image.Digest == about.ImageDigest {
			return &image, nil
		}
	}
	here := "there is none of that name here"
	if image, err := m.o.Images.Image(about.Image); err == nil {
		if over := slices.ContainsFunc(about.Disks, func(d manifestDisk) bool { return d.Name == DiskOverlay }); !over && image.Root == "" {
			return &image, nil
		}
		here = "the one of that name here is " + image.Digest
	}
	return nil, fmt.Errorf("it needs the image %.64q that is %.80q, made from %.200q, and %s: make an image, of any name, of that source first; what is made from the same bytes has the same digest: %w",
		about.Image, about.ImageDigest, about.ImageSource, here, ErrNotFound)
}

// checkDisks lets the driver look at imported disks, with a uid of this import's own, and takes
// them back.
func (m *Manager) checkDisks(ctx context.Context, spec *Spec) (err error) {
	driver, ok := m.drivers[spec.Config.VMM].(DiskKeeper)
	if !ok {
		return ErrUnsupported
	}
	job, err := m.o.Jobs.Begin()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // before the uid is given back
			err = errors.Join(err, job.Kill(), os.RemoveAll(spec.Dir))
		}
		err = errors.Join(err, job.End())
	}()
	spec.UID, spec.GID = job.UID, job.UID
	for _, d := range append([]Disk{{Path: DisksDir(spec.Dir)}}, spec.Disks...) {
		if err := os.Chown(d.Path, spec.UID, spec.GID); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	bounded, cancel := context.WithTimeout(ctx, tidyWait)
	defer cancel()
	if err := driver.ImportDisks(bounded, spec); err != nil {
		return err
	}
	return errors.Join(job.Kill(), takeBack(spec))
}

// takeBack makes the daemon the owner of imported disks. They are to be regular files without
// another name, and nothing else may be in their directory: a program that reads strangers' disks
// made them.
func takeBack(spec *Spec) error {
	dir := DisksDir(spec.Dir)
	if err := os.Chown(dir, os.Getuid(), os.Getgid()); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !slices.ContainsFunc(spec.Disks, func(d Disk) bool { return d.Path == path }) {
			return fmt.Errorf("what looked at its disks made a file %.64q: %w", e.Name(), ErrInvalid)
		}
		file, err := host.OpenRegular(path, os.O_RDONLY, host.AnyOwner)
		if err != nil {
			return fmt.Errorf("the disk %.64q is no file of its own (%v): %w", e.Name(), err, ErrInvalid)
		}
		if err := errors.Join(file.Chown(os.Getuid(), os.Getgid()), file.Close()); err != nil {
			return err
		}
	}
	return nil
}

// takeDisks writes the members of the archive that are spec's disks, and nothing else, and compares their digests.
func takeDisks(ctx context.Context, archive *tar.Reader, about *manifest, spec *Spec) error {
	if len(about.Disks) > len(spec.Disks) {
		return fmt.Errorf("it has %d disks, the VM %d: %w", len(about.Disks), len(spec.Disks), ErrInvalid)
	}
	for _, d := range about.Disks {
		path := ""
		for _, disk := range spec.Disks {
			if filepath.Base(disk.Path) == d.Name {
				path = disk.Path
			}
		}
		h, err := archive.Next()
		if err != nil || path == "" || h.Name != d.Name || h.Typeflag != tar.TypeReg || h.Size != d.Size {
			return fmt.Errorf("%.64q is not the disk that its %s tells of (%v): %w", d.Name, archiveManifest, err, ErrInvalid)
		}
		if host.Sparse(h) {
			return fmt.Errorf("the disk %s has holes that the archive leaves out (a sparse member): %w",
				d.Name, ErrInvalid)
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		sum := sha256.New()
		_, err = host.CopySparse(ctx, f, io.TeeReader(archive, sum), host.Limit{Read: d.Size})
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		if hex.EncodeToString(sum.Sum(nil)) != d.SHA256 {
			return fmt.Errorf("the disk %s is not what was exported: its digest differs: %w", d.Name, ErrInvalid)
		}
	}
	if _, err := archive.Next(); err != io.EOF {
		return fmt.Errorf("it does not end after its disks (%v): %w", err, ErrInvalid)
	}
	return nil
}
