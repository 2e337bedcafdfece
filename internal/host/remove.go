package host

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
)

// removeStep is how many bytes of a file are freed at once. Tests change it.
var removeStep = int64(1 << 30)

// RemoveAll is os.RemoveAll that ends with ctx, and then returns its error. It frees large files in
// steps: unlink(2) of a large one takes seconds in some file systems, and a process that is killed
// meanwhile ends only afterwards. The content of a file with another name stays.
func RemoveAll(ctx context.Context, path string) error {
	err := filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && e.Type().IsRegular() {
			shrink(ctx, path)
		}
		return nil // os.RemoveAll returns what is wrong
	})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// shrink frees all but the first step of a file that has one name, until ctx ends.
func shrink(ctx context.Context, path string) {
	f, err := OpenRegular(path, os.O_WRONLY, AnyOwner)
	if err != nil {
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return
	}
	for size := info.Size() - removeStep; size > 0 && ctx.Err() == nil; size -= removeStep {
		if f.Truncate(size) != nil {
			return
		}
	}
}
