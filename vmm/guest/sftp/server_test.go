package sftp

import (
	"bytes"
	"io"
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// asked is a request with that body.
func asked(kind byte, body ...byte) []byte { return packet(kind, 7, body...) }

// serveFiles gives all that a session answers to what is sent at once.
func serveFiles(t *testing.T, root string, sent []byte) []byte {
	t.Helper()
	serve, err := Handler(root)(nil)
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		serve(there)
	}()
	got := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(here) // until the end of the session
		got <- all
	}()
	here.Write(append(sent, asked(kindInit, 0, 0, 0, 3)...)) // fails when the session has ended
	// This is taken when everything before it was answered.
	here.Write([]byte{0})
	here.Close()
	<-ended
	return <-got
}

func TestFilesTogether(t *testing.T) {
	root := t.TempDir()
	var sent []byte
	for range 100 {
		sent = append(sent, asked(kindStat, 0, 0, 0, 1, '/')...)
	}
	got := serveFiles(t, root, append(sent, asked(99)...))
	st := bytes.Count(got, []byte{kindAttrs, 0, 0, 0, 7})
	if st != 100 || !bytes.Contains(got, []byte("not supported")) {
		t.Errorf("%d of 100 were answered, and %q", st, got[max(0, len(got)-60):])
	}
}

func FuzzFileServer(f *testing.F) {
	f.Add(asked(kindStat, 0, 0, 0, 1, '/'))
	f.Add(slices.Concat(
		asked(kindOpendir, 0, 0, 0, 1, '/'),
		asked(kindReaddir, 0, 0, 0, 4, 0, 0, 0, 1),
	))
	f.Add(slices.Concat(
		asked(kindOpen, 0, 0, 0, 2, '/', 'x', 0, 0, 0, Write|Create, 0, 0, 0, 0),
		asked(kindWrite, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 'x'),
	))
	f.Add(slices.Concat(
		asked(kindOpen, 0, 0, 0, 2, '/', 'x', 0, 0, 0, Read|Create, 0, 0, 0, 0),
		asked(kindExtended, slices.Concat(appendString(nil, seekFile),
			[]byte{0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, unix.SEEK_HOLE})...),
	))
	f.Add(asked(kindSetstat, 0, 0, 0, 2, '/', 'x', 0x80, 0, 0, 0, 255, 255, 255, 255))
	f.Add(asked(kindSymlink, 0, 0, 0, 1, 'x', 0, 0, 0, 2, '/', 'y'))
	f.Fuzz(func(t *testing.T, sent []byte) {
		root := t.TempDir()
		if err := os.Mkdir(root+"/guest", 0o700); err != nil {
			t.Fatal(err)
		}
		serveFiles(t, root+"/guest", sent)
		if names, err := os.ReadDir(root); err != nil || len(names) != 1 {
			t.Errorf("beside the root is %v, %v", names, err)
		}
	})
}
