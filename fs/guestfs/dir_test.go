package guestfs

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"banger/vmm"
	"banger/vmm/guest/sftp"
)

// endlessDir serves a directory without end.
func endlessDir(conn net.Conn) {
	defer conn.Close()
	const names = 10_000
	packet := func(kind byte, id []byte, body []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(1+len(id)+len(body)))
		return append(append(append(b, kind), id...), body...)
	}
	list := binary.BigEndian.AppendUint32(nil, names)
	for range names {
		list = append(list, 0, 0, 0, 1, 'x', 0, 0, 0, 0, 0, 0, 0, 0)
	}
	for {
		var head [4]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		asked := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(conn, asked); err != nil {
			return
		}
		var answer []byte
		switch asked[0] {
		case 1: // SSH_FXP_INIT
			answer = packet(2, nil, []byte{0, 0, 0, 3})
		case 11: // SSH_FXP_OPENDIR
			answer = packet(102, asked[1:5], []byte{0, 0, 0, 1, '1'})
		case 12: // SSH_FXP_READDIR
			answer = packet(104, asked[1:5], list)
		default:
			answer = packet(101, asked[1:5], make([]byte, 12))
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func TestDirWithoutEnd(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	here, there := net.Pipe()
	var work sync.WaitGroup
	work.Add(1)
	go func() {
		defer work.Done()
		endlessDir(there)
	}()
	client, err := sftp.NewClient(ctx, here)
	if err != nil {
		t.Fatal(err)
	}
	g := &session{client: client}
	var d dir
	n := uint64(0)
	for err == nil && n <= 2*maxNames {
		var names []sftp.Name
		names, err = d.from(ctx, g, "/", n)
		n += uint64(len(names))
	}
	if !errors.Is(err, vmm.ErrTooBig) || n > maxNames {
		t.Errorf("%d names were read: %v", n, err)
	}
	d.close()
	if opens := g.opens.Load(); opens != 0 {
		t.Errorf("%d directories are still open", opens)
	}
	client.Close(net.ErrClosed)
	work.Wait()
}
