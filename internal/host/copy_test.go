package host_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/host"

	"golang.org/x/sys/unix"
)

func TestCopySparse(t *testing.T) {
	const hole = 8 << 20
	text := strings.Repeat("text ", 1000)
	whole := func() io.Reader {
		return io.MultiReader(strings.NewReader(text), bytes.NewReader(make([]byte, hole)), strings.NewReader(text))
	}
	size := int64(2*len(text) + hole)
	cut := func() io.Reader { return io.MultiReader(strings.NewReader(text), failing{io.ErrUnexpectedEOF}) }
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, c := range map[string]struct {
		ctx   context.Context
		src   io.Reader
		limit host.Limit
		want  error
	}{
		"whole":       {context.Background(), whole(), host.Limit{Read: size, Stored: 1 << 20}, nil},
		"one more":    {context.Background(), whole(), host.Limit{Read: size - 1}, host.ErrTooMuch},
		"stored":      {context.Background(), strings.NewReader(text), host.Limit{Stored: 4999}, host.ErrTooMuch},
		"cut short":   {context.Background(), cut(), host.Limit{}, io.ErrUnexpectedEOF},
		"ended":       {ended, endless{}, host.Limit{}, context.Canceled},
		"too endless": {context.Background(), endless{}, host.Limit{Read: 1 << 30}, host.ErrTooMuch},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, err := host.CopySparse(c.ctx, f, c.src, c.limit)
		if !errors.Is(err, c.want) || err == nil && n != size {
			t.Errorf("%s: %d bytes, error %v", name, n, err)
		}
		if name != "whole" {
			continue
		}
		want, _ := io.ReadAll(whole())
		got, err := os.ReadFile(f.Name())
		var st unix.Stat_t
		if err := errors.Join(err, unix.Fstat(int(f.Fd()), &st)); err != nil || !bytes.Equal(got, want) || st.Blocks*512 > 2<<20 {
			t.Errorf("the copy has %d bytes and takes %d, error %v", len(got), st.Blocks*512, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// endless gives zeros for ever, as a sparse member of an archive does.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
