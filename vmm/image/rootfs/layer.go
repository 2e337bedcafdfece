package rootfs

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"banger/internal/host"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Layer is a tar, perhaps compressed. It is read twice: for its names and for its contents.
type Layer struct {
	Open   func() (io.ReadCloser, error)
	Size   int64  // as stored, for the progress; 0 if unknown
	Digest string // of the stored bytes, "sha256:..."; empty if unknown
	DiffID string // of the unpacked bytes; empty if unknown

	Damaged func() // called when a digest differs; may be nil
}

// ErrDamaged is the error of bytes that do not have their digest.
var ErrDamaged = errors.New("damaged")

// DamagedError is the error of a layer that does not have its digest.
type DamagedError struct {
	Layer int // from 0
	error
}

func (d *DamagedError) Unwrap() error { return d.error }

// Piece is a part of a file. Another process can read it if it gets the file.
type Piece struct {
	*io.SectionReader
	File  *os.File
	Start int64
	owned bool
}

// NewPiece returns size bytes of a file from start on. The file is closed with the piece if the
// piece owns it.
func NewPiece(file *os.File, start, size int64, owned bool) *Piece {
	return &Piece{io.NewSectionReader(file, start, size), file, start, owned}
}

// Close closes the file if the piece owns it.
func (p *Piece) Close() error {
	if p.owned {
		return p.File.Close()
	}
	return nil
}

// Sum returns the digest of b as OCI's documents write it.
func Sum(b []byte) string {
	h := sha256.Sum256(b)
	return sumText(h[:])
}

func sumText(sha256 []byte) string { return "sha256:" + hex.EncodeToString(sha256) }

// stream reads a layer's tar and checks its digests at the end.
type stream struct {
	tar    *tar.Reader
	stored io.ReadCloser
	plain  io.Reader
	checks []check
	close  func()
}

type check struct {
	what, want string
	hash       hash.Hash
}

// openLayer reads a layer from its beginning. most bounds the unpacked bytes. read is called with
// the size of each piece of the stored bytes.
func openLayer(ctx context.Context, l *Layer, most int64, read func(n int)) (*stream, error) {
	f, err := l.Open()
	if err != nil {
		return nil, err
	}
	s := &stream{stored: f, close: func() {}}
	stored := host.NewReader(ctx, f, read)
	if l.Digest != "" {
		stored = s.check("layer", l.Digest, stored)
	}
	b := bufio.NewReaderSize(stored, 256<<10)
	if s.plain, err = s.unpack(b); err != nil {
		s.stored.Close()
		return nil, err
	}
	// A few stored bytes may unpack to gigabytes, so ctx is checked behind the unpacker as well.
	s.plain = &limited{host.NewReader(ctx, s.plain, nil), most}
	if l.DiffID != "" {
		s.plain = s.check("unpacked layer", l.DiffID, s.plain)
	}
	s.tar = tar.NewReader(s.plain)
	// The compressed bytes end after the unpacked ones. The digests need both to their ends.
	s.plain = io.MultiReader(s.plain, b)
	return s, nil
}

func (s *stream) check(what, want string, r io.Reader) io.Reader {
	c := check{what, want, sha256.New()}
	s.checks = append(s.checks, c)
	return io.TeeReader(r, c.hash)
}

// unpack returns the unpacked bytes of a stream, whose first bytes show how it is compressed.
func (s *stream) unpack(b *bufio.Reader) (io.Reader, error) {
	magic, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte(gzipMagic)):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("cannot unpack it: %w", err)
		}
		return z, nil
	case bytes.HasPrefix(magic, []byte(zstdMagic)):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, fmt.Errorf("cannot unpack it: %w", err)
		}
		s.close = z.Close
		return z, nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return nil, errors.New("it is compressed with xz; only gzip and zstd are understood")
	case bytes.HasPrefix(magic, []byte("BZh")):
		return nil, errors.New("it is compressed with bzip2; only gzip and zstd are understood")
	}
	return b, nil
}

const (
	gzipMagic = "\x1f\x8b"
	zstdMagic = "\x28\xb5\x2f\xfd"
)

// end reads to the ends of the stream and compares the digests.
func (s *stream) end() error {
	if _, err := io.Copy(io.Discard, s.plain); err != nil {
		return err
	}
	for _, c := range s.checks {
		if got := sumText(c.hash.Sum(nil)); got != c.want {
			return fmt.Errorf("%s is %w: it has the digest %s, not %s", c.what, ErrDamaged, got, c.want)
		}
	}
	return nil
}

func (s *stream) Close() error {
	s.close()
	return s.stored.Close()
}

// limited is like io.LimitReader, but more bytes are an error.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errors.New("it unpacks to more than is allowed, see image_max_size")
	}
	return n, err
}
