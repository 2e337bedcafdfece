package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"banger/internal/host"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	maxArchive = 100_000 // files of an archive of images
	maxNames   = 4 << 20 // bytes of the names in an archive of images
)

// Archive is an archive of images: a directory, or a tar of one.
type Archive struct {
	openFile func(name string) (*os.File, error) // in a directory
	tar      *os.File                            // else
	files    map[string]section                  // of the tar
}

// section is the place of a file's content in a tar.
type section struct {
	start, size int64
	link        string // another name of the file, in place of the content
}

// OpenDirectory returns the archive in a directory. open opens a file below it; the names are from
// the archive's author.
func OpenDirectory(open func(name string) (*os.File, error)) *Archive {
	return &Archive{openFile: open}
}

// OpenTar returns the archive in a tar, of which it reads the names. The file must stay open.
func OpenTar(ctx context.Context, f *os.File) (*Archive, error) {
	a := &Archive{tar: f, files: map[string]section{}}
	head := make([]byte, 4)
	if _, err := f.ReadAt(head, 0); err == nil &&
		(bytes.HasPrefix(head, []byte(gzipMagic)) || bytes.HasPrefix(head, []byte(zstdMagic))) {
		return nil, errors.New("it is compressed as a whole; unpack it first " +
			"(its layers may be compressed)")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	t := tar.NewReader(f) // which seeks over contents
	names := 0
	for n := 0; ; n++ {
		h, err := t.Next()
		if err == io.EOF {
			return a, nil
		}
		if err == nil && n >= maxArchive {
			err = fmt.Errorf("more than %d files", maxArchive)
		}
		if err == nil {
			names += len(h.Name) + len(h.Linkname)
			switch {
			case names > maxNames:
				err = fmt.Errorf("names of more than %d bytes", maxNames)
			case host.Sparse(h):
				err = errSparse
			}
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, fmt.Errorf("not an archive of an image: %w", err)
		}
		name := path.Clean("/" + h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			start, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			a.files[name] = section{start: start, size: h.Size}
		case tar.TypeLink:
			a.files[name] = section{link: path.Clean("/" + h.Linkname)}
		case tar.TypeSymlink:
			a.files[name] = section{link: path.Clean(path.Join("/", path.Dir(name), h.Linkname))}
		}
	}
}

// open returns a file of the archive and its size.
func (a *Archive) open(name string) (*Piece, int64, error) {
	if a.openFile != nil {
		f, err := a.openFile(name)
		if err != nil {
			return nil, 0, err
		}
		fi, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, 0, err
		}
		return NewPiece(f, 0, fi.Size(), true), fi.Size(), nil
	}
	s, ok := a.files[path.Clean("/"+name)]
	if ok && s.link != "" {
		s, ok = a.files[s.link]
	}
	if !ok || s.link != "" {
		return nil, 0, fmt.Errorf("%.200q: %w", name, ErrAbsent)
	}
	return NewPiece(a.tar, s.start, s.size, false), s.size, nil
}

// read returns the content of a small file.
func (a *Archive) read(name string) ([]byte, error) {
	f, size, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > MaxJSON {
		return nil, fmt.Errorf("%.200q has %d bytes, %d are allowed", name, size, MaxJSON)
	}
	return io.ReadAll(io.LimitReader(f, MaxJSON))
}

// Manifest implements Source.
func (a *Archive) Manifest(ctx context.Context, d *v1.Descriptor) ([]byte, error) {
	return a.Blob(ctx, d)
}

// Blob implements Source.
func (a *Archive) Blob(_ context.Context, d *v1.Descriptor) ([]byte, error) {
	return a.read(blobPath(d.Digest))
}

func blobPath(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// layer returns a layer of the archive. The digest may be empty.
func (a *Archive) layer(name, digest string) (*Layer, error) {
	f, size, err := a.open(name)
	if err != nil {
		return nil, err
	}
	f.Close()
	return &Layer{Size: size, Digest: digest, Open: func() (io.ReadCloser, error) {
		p, _, err := a.open(name)
		if err != nil {
			return nil, err
		}
		return p, nil
	}}, nil
}
