package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

// blob is a fetched layer, or the files of one build, which images share.
type blob struct {
	path  string
	files int
	bytes int64 // allocated
	used  bool  // by an image
}

// blobList returns all blobs. No layer counts as used: builds alone need them, and Collect runs
// beside no build.
func (s *Set) blobList() ([]blob, error) {
	used := make(map[string]bool)
	for _, i := range s.Infos() {
		if m, err := readManifest(s.path(i.Name)); err == nil {
			used[blobKey(m.Inputs)] = true
		}
	}
	var all []blob
	for _, kind := range []string{layersName, builtName} {
		entries, err := os.ReadDir(s.path(blobsName, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") { // being made
				continue
			}
			b, err := measure(s.path(blobsName, kind, e.Name()))
			if err != nil {
				return nil, err
			}
			b.used = kind == builtName && used[e.Name()]
			all = append(all, b)
		}
	}
	return all, nil
}

// blobKey returns the name of the blob for a digest.
func blobKey(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// measure sums the files of a blob.
func measure(path string) (blob, error) {
	b := blob{path: path}
	err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return nil
		}
		b.files++
		b.bytes += st.Blocks * 512
		return nil
	})
	return b, err
}

// Blobs implements vmm.ImageStore.
func (s *Set) Blobs() (vmm.BlobCount, error) {
	var c vmm.BlobCount
	all, err := s.blobList()
	for _, b := range all {
		c.Files += b.files
		c.Bytes += b.bytes
		if !b.used {
			c.UnusedBytes += b.bytes
		}
	}
	return c, err
}

// Collect implements vmm.ImageStore.
func (s *Set) Collect(ctx context.Context) error {
	if !s.blobs.TryLock() {
		return fmt.Errorf("cannot collect while images are built: %w", vmm.ErrBusy)
	}
	defer s.blobs.Unlock()
	all, err := s.blobList()
	if err != nil {
		return err
	}
	for _, b := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !b.used {
			if err := removeTree(b.path); err != nil {
				return err
			}
		}
	}
	return nil
}
