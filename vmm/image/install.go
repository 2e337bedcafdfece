package image

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"banger/internal/host"
	"banger/vmm"
)

// Install links or copies the image in src to imagesDir, under src's own name. It makes imagesDir
// if that is missing, replaces an older image in one step, and does nothing if the same image is
// there. All is synced when it returns.
func Install(src, imagesDir string) error {
	name := filepath.Base(filepath.Clean(src))
	if err := install(src, imagesDir, name); err != nil {
		return fmt.Errorf("cannot install image %s: %w", name, err)
	}
	return nil
}

func install(src, imagesDir, name string) error {
	if vmm.CheckName(name) != nil {
		return fmt.Errorf("%q is no name for an image", name)
	}
	m, err := readManifest(src)
	if err != nil {
		return err
	}
	target := filepath.Join(imagesDir, name)
	old, err := readManifest(target)
	if err == nil && old.Digest == m.Digest && old.Inputs == m.Inputs {
		return nil
	}
	if err := host.MakeDirs(imagesDir, 0o755); err != nil {
		return err
	}
	return host.ReplaceDir(target, func(dir string) error {
		for _, file := range append(m.files(), manifestName) {
			err := host.LinkOrCopy(filepath.Join(src, file), filepath.Join(dir, file))
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// writeImage writes an image into dir: its manifest, and its files by their names.
func writeImage(dir string, m *manifest, files map[string][]byte) error {
	if err := host.MakeDirs(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return host.ReplaceDir(dir, func(tmp string) error {
		for name, b := range files {
			if err := host.WriteSynced(filepath.Join(tmp, name), b); err != nil {
				return err
			}
		}
		return writeManifest(tmp, m)
	})
}

// writeManifest writes dir's image.json.
func writeManifest(dir string, m *manifest) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return host.WriteSynced(filepath.Join(dir, manifestName), append(text, '\n'))
}
