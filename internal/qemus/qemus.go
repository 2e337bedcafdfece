// Package qemus holds what the daemon and `banger doctor` share about the host's QEMU: how it is
// found and started. It is a leaf.
package qemus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"banger/internal/host"
)

// Program is the name of QEMU in PATH.
const Program = "qemu-system-x86_64"

// Sandbox keeps a QEMU from defaults, displays and system calls that no VM needs.
var Sandbox = []string{"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
	"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"}

// maxAnswer bounds what a QEMU that is tried writes, in bytes.
const maxAnswer = 64 << 10

// Try starts a QEMU with a machine and an accelerator, no guest in it, and ends it. It returns the
// version. So it finds what is missing of QEMU's modules, and a QEMU without seccomp. The error has
// QEMU's own words. It blocks until QEMU has ended, which it has when ctx ends.
func Try(ctx context.Context, program, machine, accel string) (version string, err error) {
	args := append([]string{"-M", machine, "-accel", accel, "-m", "16M", "-S", "-qmp", "stdio"},
		Sandbox...)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"quit"}`)
	answer, complaint := host.Beginning{Most: maxAnswer}, host.Beginning{Most: maxAnswer}
	cmd.Stdout, cmd.Stderr = &answer, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("%w: %s", err, host.OneLine(complaint.Bytes()))
	}
	return parseVersion(answer.Bytes())
}

// parseVersion returns the version in the greeting of QMP (qemu-qmp-ref(7)).
func parseVersion(answer []byte) (string, error) {
	var greeting struct {
		QMP *struct {
			Version struct {
				QEMU struct{ Major, Minor, Micro int }
			}
		}
	}
	err := json.NewDecoder(io.LimitReader(bytes.NewReader(answer), maxAnswer)).Decode(&greeting)
	if err != nil || greeting.QMP == nil {
		return "", fmt.Errorf("it does not greet as QEMU does: %s", host.OneLine(answer))
	}
	v := greeting.QMP.Version.QEMU
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro), nil
}
