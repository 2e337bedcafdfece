package integration

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/host"
)

// keptFor is how long what was made is used again: less than the daemon keeps a Debian.
const keptFor = 20 * time.Hour

// keptMost is how many files of a kind stay.
const keptMost = 3

// kept returns the file of a kind that was made of these inputs. An earlier run, of any checkout,
// may have made it, or fill makes it now. Its name holds the digests of the inputs and of the
// content, and kept verifies the content. It is in the user's cache directory (XDG_CACHE_HOME).
func kept(kind, inputs string, fill func(path string) error) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "banger-test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	key := sha256.Sum256([]byte(inputs))
	begin := filepath.Join(dir, fmt.Sprintf("%s.%x.", kind, key[:8]))
	found, _ := filepath.Glob(begin + "*")
	for _, path := range found {
		fi, err := os.Stat(path)
		if err != nil || time.Since(fi.ModTime()) > keptFor {
			continue // the last step removes it
		}
		if sum, err := host.FileSHA256(path); err == nil && path == begin+sum {
			return path, nil
		}
		if err := os.Remove(path); err != nil { // damaged
			return "", err
		}
	}
	made, err := os.MkdirTemp(dir, "making.")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(made)
	tmp := filepath.Join(made, kind)
	if err := fill(tmp); err != nil {
		return "", err
	}
	sum, err := host.FileSHA256(tmp)
	if err != nil {
		return "", err
	}
	if err := os.Rename(tmp, begin+sum); err != nil {
		return "", err
	}
	return begin + sum, forget(dir, kind+".")
}

// forget removes what is too old or too much of a kind, and what runs left that did not end.
func forget(dir, kind string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	newer := func(than time.Time) (n int) {
		for _, e := range entries {
			fi, err := e.Info()
			if err == nil && strings.HasPrefix(e.Name(), kind) && fi.ModTime().After(than) {
				n++
			}
		}
		return n
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			continue // another run removed it
		}
		old := time.Since(fi.ModTime()) > keptFor
		if old || strings.HasPrefix(e.Name(), kind) && newer(fi.ModTime()) >= keptMost {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestKept(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	made := 0
	get := func(inputs string) string {
		t.Helper()
		path, err := kept("thing", inputs, func(path string) error {
			made++
			return os.WriteFile(path, []byte("of "+inputs), 0o644)
		})
		if err != nil || readFile(path) != "of "+inputs {
			t.Fatalf("%s holds %q: %v", path, readFile(path), err)
		}
		return path
	}
	path := get("a")
	if get("a"); made != 1 {
		t.Errorf("made %d times, not once", made)
	}
	damage(t, path)
	if get("a"); made != 2 {
		t.Error("a damaged one was taken")
	}
	old := time.Now().Add(-keptFor - time.Minute)
	must(t, os.Chtimes(path, old, old))
	if get("a"); made != 3 {
		t.Error("an old one was taken")
	}
	for _, inputs := range []string{"b", "c", "d", "e"} {
		get(inputs)
	}
	if _, err := kept("thing", "f", func(string) error { return os.ErrInvalid }); err == nil {
		t.Error("one that could not be made is there")
	}
	left, err := os.ReadDir(filepath.Join(cache, "banger-test"))
	if err != nil || len(left) != keptMost {
		t.Errorf("left are %v, error %v", left, err)
	}
}
