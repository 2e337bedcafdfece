package fake

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"banger/vmm/guest/sftp"
)

// filesDir holds the guest's files, in the VM's directory. The first stream creates it; the next
// start removes it.
const filesDir = "files"

// serveFiles handles sftp.Stream.
func (m *machine) serveFiles(request json.RawMessage) (func(net.Conn), error) {
	root := filepath.Join(m.dir, filesDir)
	m.files.Do(func() { m.filesErr = makeFiles(root) })
	if m.filesErr != nil {
		return nil, m.filesErr
	}
	return sftp.Handler(root)(request)
}

// makeFiles creates the guest's file system with the directories that every Linux has.
func makeFiles(root string) error {
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"", 0o755}, {"etc", 0o755}, {"tmp", 0o777 | os.ModeSticky}} {
		path := filepath.Join(root, d.name)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.Chmod(path, d.mode); err != nil {
			return err
		}
	}
	return nil
}

// still wraps the ends of a stream of files so that they block while the agent does not answer.
func (g agent) still(host, far net.Conn) (net.Conn, net.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	return &ending{host, cancel}, &stalling{&ending{far, cancel}, g, ctx}
}

// ending calls cancel when it is closed.
type ending struct {
	net.Conn
	cancel context.CancelFunc
}

func (c *ending) Close() error {
	c.cancel()
	return c.Conn.Close()
}

// stalling is the guest's end. Its reads block while the agent does not answer.
type stalling struct {
	net.Conn
	g   agent
	ctx context.Context // ends with either end
}

func (c *stalling) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == nil {
		err = c.g.answer(c.ctx)
	}
	return n, err
}
