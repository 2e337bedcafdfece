package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// plant makes files below root: a directory ends in a slash, a link has a target after an arrow. A
// target that begins with ROOT is below root.
func plant(t *testing.T, root string, files ...string) {
	t.Helper()
	for _, f := range files {
		path, target, link := strings.Cut(f, " -> ")
		full := filepath.Join(root, path)
		err := os.MkdirAll(filepath.Dir(full), 0o755)
		switch {
		case err != nil:
		case link:
			err = os.Symlink(strings.Replace(target, "ROOT", root, 1), full)
		case strings.HasSuffix(path, "/"):
			err = os.Mkdir(full, 0o700)
		default:
			err = os.WriteFile(full, nil, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// dirs lists the directories below root with their modes.
func dirs(t *testing.T, root string) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && path != root {
			info, err := e.Info()
			if err != nil {
				return err
			}
			list = append(list, fmt.Sprintf("%s %v", path[len(root)+1:], info.Mode()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// TestMakeStandardDirs makes what images of containers lack, and leaves what they have.
func TestMakeStandardDirs(t *testing.T) {
	const run, tmp, etc = "run drwxr-xr-x", "tmp dtrwxrwxrwx", "etc drwxr-xr-x"
	for _, c := range []struct {
		name  string
		files []string
		want  string
		err   string
	}{
		{"an empty root", nil, join(etc, run, tmp), ""},
		{"what is there stays", []string{"etc/", "run/", "tmp/", "var/tmp/"},
			"etc drwx------, run drwx------, tmp drwx------, var drwxr-xr-x, var/tmp drwx------", ""},
		{"links that lead nowhere", []string{"tmp -> ROOT/data/t", "run -> here/../mnt", "etc -> e/f",
			"var/run -> ../run", "var/tmp -> ROOT/data/v"},
			join("data drwxr-xr-x", "data/t dtrwxrwxrwx", "data/v dtrwxrwxrwx", "e drwxr-xr-x",
				"e/f drwxr-xr-x", "mnt drwxr-xr-x", "var drwxr-xr-x"), ""},
		{"a link to a link", []string{"tmp -> a", "a -> ROOT/b/c", "b -> d"},
			join("d drwxr-xr-x", "d/c dtrwxrwxrwx", etc, run), ""},
		{"files in their places", []string{"tmp", "run -> web", "web", "var"}, etc, ""},
		{"a file as /etc", []string{"etc"}, "", `cannot make /etc: "ROOT/etc" is no directory`},
		{"a loop", []string{"tmp -> tmp"}, join(etc, run), `cannot make /tmp: "ROOT/tmp": too many links`},
		{"through a file", []string{"run -> web/x", "web"}, etc,
			`cannot make /run: "ROOT/web/x": not a directory`},
	} {
		root := t.TempDir()
		plant(t, root, c.files...)
		err := makeStandardDirs(root)
		got := ""
		if err != nil {
			got = strings.ReplaceAll(err.Error(), root, "ROOT")
		}
		if got != c.err || dirs(t, root) != c.want {
			t.Errorf("%s: error %q, want %q; %s, want %s", c.name, got, c.err, dirs(t, root), c.want)
		}
	}
}

func join(dirs ...string) string { return strings.Join(dirs, ", ") }
