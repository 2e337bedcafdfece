package image

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"banger/internal/host"
	"banger/vmm"
)

// Install puts the image in directory src into imagesDir, under src's own
// name, and makes imagesDir if need be. Files are linked where that is
// possible and copied elsewhere. It replaces an older image of that name in one
// step, does nothing when the same image is there already, and has synced what it wrote when it returns.
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
	if have, err := readManifest(target); err == nil && have.Digest == m.Digest && have.Inputs == m.Inputs {
		return nil
	}
	if err := host.MakeDirs(imagesDir, 0o755); err != nil {
		return err
	}
	return host.ReplaceDir(target, func(dir string) error {
		for _, file := range append(m.files(), manifestName) {
			if err := host.LinkOrCopy(filepath.Join(src, file), filepath.Join(dir, file)); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeImage writes m and its files, which are given by name, as the image dir.
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
