package image

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"banger/vmm/image/rootfs"
)

// debianFresh is how long the build of a Debian serves further images.
const debianFresh = 24 * time.Hour

// debianDone is how much of a build is done when mmdebstrap has ended.
const debianDone = 0.8

// planDebian plans the build of a Debian, which is made when the plan is.
func planDebian(_ context.Context, j *job) (*plan, error) {
	d, err := rootfs.NewDebian(j.source.arg)
	if err != nil {
		return nil, err
	}
	key := digest([]byte("debian"), []byte(recipeRoot), d.Recipe())
	j.set.expire(key, debianFresh)
	return &plan{key: key, make: func(ctx context.Context, dir string) (*manifest, error) {
		return j.makeDebian(ctx, dir, d)
	}}, nil
}

// expire removes the build of a key if it is older than age.
func (s *Set) expire(key string, age time.Duration) {
	dir := s.path(blobsName, builtName, blobKey(key))
	if m, err := readManifest(dir); err == nil && time.Since(m.Created) > age {
		if err := removeTree(dir); err != nil {
			s.o.Log.Error("cannot remove an old build", "err", err)
		}
	}
}

// makeDebian makes a tar of a Debian and builds an image of it.
func (j *job) makeDebian(ctx context.Context, dir string, d *rootfs.Debian) (*manifest, error) {
	work, err := os.MkdirTemp(j.set.path(blobsName, builtName), ".debian-")
	if err != nil {
		return nil, err
	}
	defer removeTree(work)
	if err := d.Run(ctx, work, "root.tar", j.progress); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(work, "root.tar"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	layer, err := tarLayer(ctx, f)
	if err != nil {
		return nil, err
	}
	sum := layer.Digest
	layer.Digest = "" // no user can change the tar, so it is not checked again
	m, err := j.makeRoot(ctx, dir, []*rootfs.Layer{layer}, nil, debianDone)
	if err == nil {
		m.Digest, m.Created = sum, time.Now().UTC()
	}
	return m, err
}
