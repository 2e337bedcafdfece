package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/vmm/image/rootfs"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// download is a layer on its way from a registry into a file. A connection that breaks is followed
// by a request for the rest (Range, RFC 9110). A registry that does not give the rest, or that of
// another content, has the layer begun anew. The digest is that of all bytes in the file.
type download struct {
	from     *registry
	layer    *v1.Descriptor
	to       *os.File
	room     host.Room
	progress func(n int64) // of bytes that are in the file for the first time

	hash hash.Hash // of the bytes in the file
	at   int64     // how many these are
	most int64     // how many these were at most
	etag string    // of the answers that they are from, empty if unknown
}

func newDownload(from *registry, layer *v1.Descriptor, to *os.File,
	progress func(int64)) *download {
	return &download{from: from, layer: layer, to: to, room: host.Room{File: to},
		progress: progress, hash: sha256.New()}
}

// run fetches the layer to its end. Tries count anew after stallBytes of progress: a long layer
// over a bad line gets there, and a line over which nothing comes ends soon. again is called before
// each further try.
func (d *download) run(ctx context.Context, first time.Duration, again func(err error)) error {
	p := patience{first: first}
	for {
		before := d.most
		err := d.once(ctx)
		if err == nil {
			return d.check()
		}
		if d.most-before >= stallBytes {
			p.tries = 0
		}
		if err := p.wait(ctx, err); err != nil {
			return err
		}
		again(err)
	}
}

// once makes one request and copies what comes.
func (d *download) once(ctx context.Context) error {
	if d.at == d.layer.Size {
		return d.to.Truncate(d.at)
	}
	response, err := d.from.get(ctx, d.layer.Digest, d.at)
	if err != nil {
		for _, e := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
			if errors.Is(err, e) { // it was there for the manifest
				return &brokenError{err}
			}
		}
		return err
	}
	defer response.Body.Close()
	if b := busy(response); b != nil {
		return b
	}
	if err := d.place(response); err != nil {
		return err
	}
	return d.copy(ctx, response.Body)
}

// place finds out where in the layer an answer's body belongs.
func (d *download) place(r *http.Response) error {
	etag, left := strings.TrimPrefix(r.Header.Get("ETag"), "W/"), d.layer.Size-d.at
	switch {
	case d.at > 0 && r.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return d.restart(errors.New("the registry does not have the rest of it"))
	case d.at > 0 && r.StatusCode == http.StatusPartialContent:
		want := fmt.Sprintf("bytes %d-%d/", d.at, d.layer.Size-1)
		size, ok := strings.CutPrefix(r.Header.Get("Content-Range"), want)
		if !ok || size != "*" && size != fmt.Sprint(d.layer.Size) {
			return d.restart(fmt.Errorf("the registry gives %.100q, not the rest of it",
				r.Header.Get("Content-Range")))
		}
		if etag != d.etag && etag != "" && d.etag != "" {
			return d.restart(errors.New("the registry has it with another ETag now"))
		}
	default:
		if err := transport.CheckError(r, http.StatusOK); err != nil {
			return err
		}
		if err := d.reset(); err != nil {
			return err
		}
		left = d.layer.Size
	}
	if r.ContentLength >= 0 && r.ContentLength != left {
		return fmt.Errorf("%w: the registry has %d bytes, not %d",
			rootfs.ErrDamaged, r.ContentLength, left)
	}
	d.etag = etag
	return nil
}

// reset empties the file.
func (d *download) reset() error {
	if d.at == 0 {
		return nil
	}
	d.hash.Reset()
	d.at, d.etag = 0, ""
	return d.to.Truncate(0)
}

// restart empties the file and returns an error after which the whole layer is asked for.
func (d *download) restart(why error) error {
	if err := d.reset(); err != nil {
		return err
	}
	return &brokenError{why}
}

const downloadPiece = 256 << 10

// copy appends a body to the file. Blocks of zeros become holes.
func (d *download) copy(ctx context.Context, body io.Reader) error {
	piece := make([]byte, downloadPiece)
	for {
		n, err := body.Read(piece)
		b := piece[:n]
		if int64(n) > d.layer.Size-d.at {
			return fmt.Errorf("%w: more than %d bytes", rootfs.ErrDamaged, d.layer.Size)
		}
		if !host.Zeros(b) {
			if err := d.room.Take(int64(n)); err != nil {
				return err
			}
			if _, err := d.to.WriteAt(b, d.at); err != nil {
				return err
			}
		}
		d.hash.Write(b)
		if d.at += int64(n); d.at > d.most {
			d.progress(d.at - d.most)
			d.most = d.at
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == io.EOF && d.at == d.layer.Size:
			return d.to.Truncate(d.at)
		case err == io.EOF:
			return &brokenError{io.ErrUnexpectedEOF}
		case errors.Is(err, errLong):
			return err
		case err != nil:
			return &brokenError{err}
		}
	}
}

// check compares the digest of all that came.
func (d *download) check() error {
	if got := "sha256:" + hex.EncodeToString(d.hash.Sum(nil)); got != d.layer.Digest.String() {
		return fmt.Errorf("%w: %d bytes with the digest %s, not %s",
			rootfs.ErrDamaged, d.at, got, d.layer.Digest)
	}
	return nil
}
