package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"

	"banger/internal/host"
	"banger/vmm/image/rootfs"
)

// planImage plans the build of a container's image whose layers can be read. The progress goes on
// from begin.
func (j *job) planImage(i *rootfs.Image, begin float64) (*plan, error) {
	if err := i.Check(); err != nil {
		return nil, err
	}
	program, err := i.Program()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(program)
	if err != nil {
		return nil, err
	}
	parts := [][]byte{[]byte("oci"), []byte(recipeRoot), []byte(i.Digest), text, j.owner()}
	for _, l := range i.Layers {
		parts = append(parts, []byte(l.DiffID))
	}
	exposed, check := i.Exposed(), i.Healthcheck()
	if exposed != nil || check != nil {
		// Builds of an earlier version lack these.
		hints, err := json.Marshal([]any{exposed, check})
		if err != nil {
			return nil, err
		}
		parts = append(parts, hints)
	}
	return &plan{
		key: digest(parts...),
		make: func(ctx context.Context, dir string) (*manifest, error) {
			m, err := j.makeRoot(ctx, dir, i.Layers, program, begin)
			if err == nil {
				m.Digest, m.Exposed, m.Healthcheck = i.Digest, exposed, check
			}
			return m, err
		},
	}, nil
}

// planOCI plans the build of an OCI image layout.
func planOCI(ctx context.Context, j *job) (*plan, error) {
	return j.planArchive(ctx, (*rootfs.Archive).OCI)
}

// planDockerArchive plans the build of an archive of `docker save`.
func planDockerArchive(ctx context.Context, j *job) (*plan, error) {
	return j.planArchive(ctx, (*rootfs.Archive).Docker)
}

func (j *job) planArchive(ctx context.Context,
	find func(*rootfs.Archive, context.Context, string) (*rootfs.Image, error)) (*plan, error) {
	var archive *rootfs.Archive
	if j.local.dir {
		archive = rootfs.OpenDirectory(j.local.open)
	} else {
		var err error
		if archive, err = rootfs.OpenTar(ctx, j.local.file); err != nil {
			return nil, err
		}
	}
	i, err := find(archive, ctx, j.source.digest)
	if err != nil {
		return nil, err
	}
	return j.planImage(i, 0)
}

// planRootfs plans the build of a tar of a root file system. The tar is read once for its digest.
func planRootfs(ctx context.Context, j *job) (*plan, error) {
	if j.local.dir {
		return nil, errors.New("it is a directory, not a tar")
	}
	layer, err := tarLayer(ctx, j.local.file)
	if err != nil {
		return nil, err
	}
	return &plan{
		key: digest([]byte("rootfs"), []byte(recipeRoot), []byte(layer.Digest), j.owner()),
		make: func(ctx context.Context, dir string) (*manifest, error) {
			m, err := j.makeRoot(ctx, dir, []*rootfs.Layer{layer}, nil, 0)
			if err == nil {
				m.Digest = layer.Digest
			}
			return m, err
		},
	}, nil
}

// tarLayer returns a whole file as a layer, with its digest.
func tarLayer(ctx context.Context, f *os.File) (*rootfs.Layer, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	whole := io.NewSectionReader(f, 0, fi.Size())
	if _, err := io.Copy(h, host.NewReader(ctx, whole, nil)); err != nil {
		return nil, err
	}
	return &rootfs.Layer{
		Size: fi.Size(), Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)),
		Open: func() (io.ReadCloser, error) { return rootfs.NewPiece(f, 0, fi.Size(), false), nil },
	}, nil
}
