package boot

import (
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
