package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMakeDir(t *testing.T) {
	for _, c := range []struct {
		name  string
		links map[string]string // and files, whose text begins with "file"
		path  string
		made  string // what is a directory afterwards
		error string
	}{
		{"missing", nil, "a/b", "a/b", ""},
		{"there", map[string]string{"a/x": "file"}, "a", "a", ""},
		{"dangling", map[string]string{"run": "var/run"}, "run", "var/run", ""},
		{"upwards", map[string]string{"var/run": "../run"}, "var/run", "run", ""},
		{"a chain", map[string]string{"a": "b", "b": "c/d"}, "a", "c/d", ""},
		{"a parent", map[string]string{"a": "b"}, "a/x", "b/x", ""},
		{"a loop", map[string]string{"a": "b", "b": "a"}, "a", "", "too many links"},
		{"a file", map[string]string{"a": "file"}, "a", "", "is no directory"},
		{"below a file", map[string]string{"a": "file"}, "a/b", "", "not a directory"},
		{"deep", nil, strings.Repeat("d/", 200) + "d", strings.Repeat("d/", 200) + "d", ""},
	} {
		root := t.TempDir()
		for name, to := range c.links {
			path := filepath.Join(root, name)
			err := os.MkdirAll(filepath.Dir(path), 0o755)
			if err == nil && to == "file" {
				err = os.WriteFile(path, nil, 0o644)
			} else if err == nil {
				err = os.Symlink(to, path)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		err := makeDir(filepath.Join(root, c.path), 0o700)
		if c.error != "" {
			if err == nil || !strings.Contains(err.Error(), c.error) {
				t.Errorf("%s: error %v, want %q", c.name, err, c.error)
			}
			continue
		}
		info, e := os.Lstat(filepath.Join(root, c.made))
		if err != nil || e != nil || !info.IsDir() {
			t.Errorf("%s: errors %v and %v", c.name, err, e)
		}
	}
}

func TestMakeStandardDirs(t *testing.T) {
	root := t.TempDir()
	if err := makeStandardDirs(root); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{
		"etc": os.ModeDir | 0o755, "run": os.ModeDir | 0o755,
		"tmp": os.ModeDir | os.ModeSticky | 0o777,
	} {
		if info, err := os.Lstat(filepath.Join(root, path)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, error %v", path, info.Mode(), err)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "var")); err == nil {
		t.Error("a /var was made")
	}
	root = t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "tmp"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	err := makeStandardDirs(root)
	if err == nil || !strings.Contains(err.Error(), "/tmp\" is no directory") {
		t.Errorf("error %v", err)
	}
}
