package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseProgramOutput(t *testing.T) {
	if got := dependsOn("linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-9-cloud-amd64\n"); got != "linux-image-6.1.0-9-cloud-amd64" {
		t.Errorf("depends on %q", got)
	}
	if got := dependsOn("W: nothing\n"); got != "" {
		t.Errorf("depends on %q", got)
	}
	if diff := cmp.Diff([]string{"[", "sh"}, appletNames("[\nbusybox\nsh\nsh\na/b\n")); diff != "" {
		t.Error(diff)
	}
}

// TestParseURI reads what apt-get download --print-uris prints, and refuses all that names no file
// of this directory with its digest.
func TestParseURI(t *testing.T) {
	const sum = "e7d02b943971edcb8790e256c02cfab3bca6c3d37c1bf25392a57c71300615ee"
	const name = "linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb"
	uri := "'http://mirror/debian/pool/main/l/" + name + "' "
	got, err := parseURI("W: a warning\n" + uri + name + " 26713492 SHA256:" + sum + "\n")
	if want := (debFile{name, 26713492, sum}); err != nil || got != want {
		t.Errorf("%+v, error %v", got, err)
	}
	for _, bad := range []string{
		"", uri + name + " 1 MD5Sum:0123", uri + "../" + name + " 1 SHA256:" + sum, uri + "other.deb 1 SHA256:" + sum,
		uri + name + " 99999999999999999999 SHA256:" + sum, uri + name + " 1 SHA256:" + sum[1:],
	} {
		if got, err := parseURI(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

// TestFetchKernel runs programs in the places of apt's.
func TestFetchKernel(t *testing.T) {
	const name = "linux-image-1-cloud-amd64_1_amd64.deb"
	const sum = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" // of x
	uri := "echo \"'http://mirror/" + name + "' " + name + " 1 SHA256:" + sum + "\""
	const depends = "echo '  Depends: linux-image-1-cloud-amd64'"
	for _, x := range []struct{ what, aptCache, aptGet, want string }{
		{"not in the lists", "echo 'E: No packages found' >&2; exit 100", "exit 1", "apt has no package"},
		{"installed, not in the lists", depends, "echo \"E: Can't find a source\" >&2; exit 100", "Can't find a source"},
		{"no network", depends, "case $* in *uris*) " + uri + ";; *) echo 'E: no route' >&2; exit 100;; esac", "no route"},
		{"another file", depends, "case $* in *uris*) " + uri + ";; *) printf y > " + name + ";; esac", "left another file"},
		{"fetched", depends, "case $* in *uris*) " + uri + ";; *) printf x > " + name + ";; esac", ""},
	} {
		tools, dir := t.TempDir(), t.TempDir()
		t.Setenv("PATH", tools+":/usr/bin:/bin")
		for tool, script := range map[string]string{"apt-cache": x.aptCache, "apt-get": x.aptGet, "dpkg-deb": ""} {
			if err := os.WriteFile(filepath.Join(tools, tool), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		got, err := FetchKernel(t.Context(), dir, func(float64) {})
		if x.want == "" && (err != nil || got != filepath.Join(dir, name)) || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %s, error %v; want %q", x.what, got, err, x.want)
		}
		if isNone := errors.Is(err, ErrNoPackage); isNone != strings.Contains(x.what, "not in the lists") {
			t.Errorf("%s: %v; is ErrNoPackage: %v", x.what, err, isNone)
		}
		if left, err := os.ReadDir(dir); err != nil || x.want != "" && len(left) > 0 {
			t.Errorf("%s: left are %v, error %v", x.what, left, err)
		}
	}
}
