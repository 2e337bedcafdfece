package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestLock starts a second daemon beside one that stays, and beside one that has been killed and is
// not gone yet.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	first, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := lock(dir); err == nil || !strings.Contains(err.Error(), "in use by bangerd with pid "+strconv.Itoa(os.Getpid())) {
		t.Errorf("the lock was given twice: %v, %v", second, err)
	}
	time.AfterFunc(50*time.Millisecond, func() { first.Close() })
	second, err := lock(dir)
	if err != nil {
		t.Fatalf("not taken from one that has gone: %v", err)
	}
	second.Close()
}
