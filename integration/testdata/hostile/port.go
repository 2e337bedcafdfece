package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"banger/vmm/guest"
)

// markerStart is how the reset of a connection begins.
const markerStart = "\xff\xfe"

// port is the agent's virtio-serial port, on which some modes lie below HTTP:
//
//	mute    reads everything and sends nothing
//	crawl   writes a byte a second
//	noise   never echoes a marker and writes random bytes without end
//	babble  echoes the marker, and random bytes in place of each frame
//	pings   sends the multiplexer's pings without end and reads nothing
//	streams opens streams without end and fills their windows
type port struct {
	*os.File
	modes   *modes
	writing sync.Mutex // held for each write, so that a frame stays whole
}

func openPort(m *modes) (*port, error) {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, f := range names {
		if name, _ := os.ReadFile(f); strings.TrimSpace(string(name)) != guest.PortName {
			continue
		}
		f, err := os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(f))), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		p := &port{File: f, modes: m}
		go p.flood()
		return p, nil
	}
	return nil, errors.New("no port " + guest.PortName)
}

// Read waits while no host is connected.
func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		mode, changed := p.modes.watch()
		switch {
		case mode == "pings" && n > 0 && !bytes.HasPrefix(b[:n], []byte(markerStart)):
			<-changed
			return n, nil
		case n > 0:
			return n, nil
		case err != nil && err != io.EOF:
			return 0, err
		}
		time.Sleep(10 * time.Millisecond) // poll(2) reports a port without a host as readable
	}
}

func (p *port) Write(b []byte) (int, error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	switch p.modes.now() {
	case "mute", "noise":
		return len(b), nil
	case "crawl":
		for i := range b {
			mode, changed := p.modes.watch()
			if mode == "crawl" {
				select {
				case <-time.After(time.Second):
				case <-changed:
				}
			}
			if _, err := p.File.Write(b[i : i+1]); err != nil {
				return i, err
			}
		}
		return len(b), nil
	case "babble":
		if !bytes.HasPrefix(b, []byte(markerStart)) {
			return p.File.Write(random(len(b)))
		}
	}
	return p.File.Write(b)
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return b
}

// flood writes without being asked, in the modes that do.
func (p *port) flood() {
	garbage := random(64 << 10)
	pings := bytes.Repeat(frame(2, 1, 0, 1, nil), 4096)
	stream := uint32(0)
	for {
		mode, changed := p.modes.watch()
		var b []byte
		switch mode {
		case "noise":
			b = garbage
		case "pings":
			b = pings
		case "streams":
			stream += 2 // the agent's side has the even numbers
			data := make([]byte, 256<<10)
			b = append(frame(1, 1, stream, 0, nil), frame(0, 0, stream, uint32(len(data)), data)...)
		default:
			<-changed
			continue
		}
		p.writing.Lock()
		_, err := p.File.Write(b)
		p.writing.Unlock()
		if err != nil {
			time.Sleep(10 * time.Millisecond) // the host has closed
		}
	}
}

// frame returns a frame of the multiplexer. Kind 0 is data, 1 a window's update, 2 a ping. Flag 1
// opens a stream or requests an answer.
func frame(kind byte, flags uint16, stream, length uint32, data []byte) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	b = binary.BigEndian.AppendUint32(b, length)
	return append(b, data...)
}
