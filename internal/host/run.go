package host

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Run runs a program in a directory and returns its output. The error holds its error output.
func Run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := StartExpendable(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, OneLine(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// StartExpendable starts a program that the kernel kills before the daemon when the host has no
// memory.
func StartExpendable(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = SetOOM(cmd.Process.Pid, OOMProgram) // it may have ended
	return nil
}

// IsStatic reports whether a program has no interpreter, which would load its libraries (elf(5),
// PT_INTERP).
func IsStatic(program *elf.File) bool {
	return !slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool {
		return p.Type == elf.PT_INTERP
	})
}

// FindProgram returns the path of a program, also of one in a directory for root's programs, which
// a user's PATH may lack. It returns "" if it is not there.
func FindProgram(name string) string {
	for _, path := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	return ""
}

// OneLine turns the output of a program into one short line for an error.
func OneLine(b []byte) string {
	const most = 500
	s := strings.Join(strings.Fields(string(b)), " ")
	if len(s) > most {
		s = s[:most] + "..."
	}
	return s
}
