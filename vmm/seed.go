package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"banger/internal/host"
)

// addSeed adds the seed disk to the spec of a guest that boots its own kernel. It writes the disk
// only if its content changes.
func (v *VM) addSeed(spec *Spec) error {
	if !spec.Image.Firmware {
		return nil
	}
	seed, err := v.m.o.Images.Seed(spec.ID, spec.Config.Net, v.guestConfig())
	if err == nil {
		path := filepath.Join(spec.Dir, DiskSeed)
		spec.Disks = append(spec.Disks, Disk{Path: path, Format: "raw", ReadOnly: true})
		err = replaceFile(path, seed)
	}
	if err != nil {
		return fmt.Errorf("cannot make its seed disk: %w", err)
	}
	return nil
}

// replaceFile replaces the file's content in one step, unless it is the same. It syncs nothing: the
// next call replaces what a crash has left.
func replaceFile(path string, content []byte) error {
	old, err := host.ReadRegular(path, host.AnyOwner, int64(len(content)))
	if err == nil && bytes.Equal(old, content) {
		return nil
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	return err
}
