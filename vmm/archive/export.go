package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"banger/internal/host"
	"banger/vmm"
)

// export is a vmm.Archive. Its parts follow one another.
type export struct {
	parts []part
	files []*os.File // without names
}

type part struct {
	io.ReaderAt
	begin, end int64 // in the archive
}

// Export implements vmm.Archives.
func (a *Archives) Export(ctx context.Context, v *vmm.VM) (vmm.Archive, error) {
	x := &export{}
	err := v.ExportDisks(ctx, x.fill)
	if err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return x, nil
}

// fill makes the archive of a VM's disks.
func (x *export) fill(ctx context.Context, spec *vmm.Spec, driver vmm.Driver) error {
	image := &spec.Image
	m := manifest{
		Version: manifestVersion, Name: spec.Name,
		Image: spec.Config.Image, ImageDigest: image.Digest, ImageSource: image.Source,
	}
	for _, d := range spec.Disks {
		f, err := driver.ExportDisk(ctx, spec, d)
		if err != nil {
			return err
		}
		x.files = append(x.files, f)
		digest := sha256.New()
		size, err := io.Copy(digest, host.NewReader(ctx, f, nil))
		if err != nil {
			return err
		}
		name := filepath.Base(d.Path)
		m.Disks = append(m.Disks, disk{name, size, hex.EncodeToString(digest.Sum(nil))})
	}
	text, err := m.text(&spec.Config)
	if err != nil {
		return err
	}
	err = x.member(manifestName, bytes.NewReader(text), int64(len(text)))
	for i, d := range m.Disks {
		err = errors.Join(err, x.member(d.Name, x.files[i], d.Size))
	}
	x.zeros(2 * blockSize) // the end of a tar
	return err
}

// text returns the manifest with the settings of a VM.
func (m *manifest) text(c *vmm.Config) ([]byte, error) {
	all := make(map[string]json.RawMessage)
	own, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(own, &all); err != nil {
		return nil, err
	}
	for _, s := range vmm.Settings {
		if s.Archive == "" {
			continue
		}
		if all[s.Archive], err = json.Marshal(s.Field(c)); err != nil {
			return nil, err
		}
	}
	text, err := json.MarshalIndent(all, "", "\t")
	return append(text, '\n'), err
}

// member adds a file to the tar.
func (x *export) member(name string, content io.ReaderAt, size int64) error {
	var head bytes.Buffer
	err := tar.NewWriter(&head).WriteHeader(&tar.Header{
		Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: size,
		ModTime: time.Now().Truncate(time.Second),
	})
	x.add(bytes.NewReader(head.Bytes()), int64(head.Len()))
	x.add(content, size)
	x.zeros((blockSize - size%blockSize) % blockSize)
	return err
}

func (x *export) zeros(size int64) { x.add(bytes.NewReader(make([]byte, size)), size) }

func (x *export) add(content io.ReaderAt, size int64) {
	begin := int64(0)
	if n := len(x.parts); n > 0 {
		begin = x.parts[n-1].end
	}
	x.parts = append(x.parts, part{content, begin, begin + size})
}

// ReadAt implements io.ReaderAt.
func (x *export) ReadAt(p []byte, off int64) (n int, err error) {
	for _, part := range x.parts {
		for n < len(p) && off < part.end {
			some := p[n:min(int64(len(p)), int64(n)+part.end-off)]
			m, err := part.ReadAt(some, off-part.begin)
			n, off = n+m, off+int64(m)
			if err != nil && (!errors.Is(err, io.EOF) || off < part.end) {
				return n, errors.Join(err, io.ErrUnexpectedEOF)
			}
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close frees the copies of the disks.
func (x *export) Close() error {
	var errs []error
	for _, f := range x.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
