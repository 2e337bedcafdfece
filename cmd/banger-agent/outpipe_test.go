package main

import (
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestOutPipe(t *testing.T) {
	p, theirs, err := newOutPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	buf := make([]byte, 16)
	read := func(want string, wantErr error) {
		t.Helper()
		n, err := p.Read(buf)
		if string(buf[:n]) != want || !errors.Is(err, wantErr) {
			t.Fatalf("it reads %q, %v, not %q, %v", buf[:n], err, want, wantErr)
		}
	}
	// Again and again what comes while it waits, and what was there before.
	for _, word := range []string{"one", "two", "three"} {
		go func() {
			time.Sleep(20 * time.Millisecond) // the reader waits by then, or need not wait
			_, _ = theirs.WriteString(word)   // who reads finds out
		}()
		read(word, nil)
		if _, err := theirs.WriteString("there" + word); err != nil {
			t.Fatal(err)
		}
		read("there"+word, nil)
	}
	if err := p.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	read("", os.ErrDeadlineExceeded)
	if err := p.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.WriteString("last"); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	read("last", nil)
	read("", io.EOF)
	read("", io.EOF)
}

// TestOutPipeCloses: a read that waits ends with it, and no descriptor is left.
func TestOutPipeCloses(t *testing.T) {
	p, theirs, err := newOutPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := p.Read(make([]byte, 1))
		ended <- err
	}()
	time.Sleep(20 * time.Millisecond) // the reader waits by then, or finds it closed
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a read ends with %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := theirs.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("its end is left open: %v", err)
	}
}
