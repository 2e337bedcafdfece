package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRules runs the check with the project's own rules on a small tree of the same shape.
func TestRules(t *testing.T) {
	program := filepath.Join(t.TempDir(), "importcheck")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	rulesText, err := os.ReadFile("../../../" + rules)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file, name, imports string
		want                string // in the output; empty where the import is allowed
	}{
		"downwards":            {"fs/f.go", "fs", "banger/vmm", ""},
		"sql in store":         {"vmm/store/s.go", "store", "database/sql", ""},
		"guest in vmm":         {"vmm/v.go", "vmm", "banger/vmm/guest", ""},
		"guest in a driver":    {"vmm/qemu/q.go", "qemu", "banger/vmm/guest", ""},
		"guest in store":       {"vmm/store/s.go", "store", "banger/vmm/guest", ""},
		"guest's files in fs":  {"fs/f.go", "fs", "banger/vmm/guest/sftp", ""},
		"guest in collector":   {"collector/c.go", "collector", "banger/vmm/guest", ""},
		"guest in the agent":   {"cmd/banger-agent/a.go", "main", "banger/vmm/guest", ""},
		"upwards":              {"vmm/v.go", "vmm", "banger/collector", "imports go one way"},
		"upwards from below":   {"vmm/qemu/q.go", "qemu", "banger/collector", "imports go one way"},
		"vmm in guest":         {"vmm/guest/g.go", "guest", "banger/vmm", "is a leaf"},
		"vmm in guest's files": {"vmm/guest/sftp/s.go", "sftp", "banger/vmm", "is a leaf"},
		"vmm in the agent":     {"cmd/banger-agent/a.go", "main", "banger/vmm", "and nothing else"},
		"part of vmm in fs":    {"fs/f.go", "fs", "banger/vmm/store", "by its interfaces only"},
		"part in collector":    {"collector/c.go", "collector", "banger/vmm/store", "by its interfaces only"},
		"part in another part": {"vmm/qemu/q.go", "qemu", "banger/vmm/store", "do not import each other"},
		"part in vmm":          {"vmm/v.go", "vmm", "banger/vmm/store", "none of its parts"},
		"sql elsewhere":        {"collector/c.go", "collector", "database/sql", "vmm/store only"},
		"room of image":        {"vmm/image/i.go", "image", "banger/vmm/image/boot", ""},
		"image in its room":    {"vmm/image/boot/b.go", "boot", "banger/vmm/image", "leaves only"},
		"store in image":       {"vmm/image/i.go", "image", "banger/vmm/store", "do not import each other"},
		"room elsewhere":       {"cmd/bangerd/m.go", "main", "banger/vmm/image/boot", "only vmm/image imports"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]string{
				"go.mod":                "module banger\n\ngo 1.26.0\n",
				rules:                   string(rulesText),
				"vmm/p.go":              "package vmm\n",
				"vmm/guest/p.go":        "package guest\n",
				"vmm/guest/sftp/p.go":   "package sftp\n",
				"collector/p.go":        "package collector\n",
				"vmm/store/doc.go":      "package store\n",
				"vmm/image/doc.go":      "package image\n",
				"vmm/image/boot/doc.go": "package boot\n",
			}
			files[c.file] = fmt.Sprintf("package %s\n\nimport _ %q\n", c.name, c.imports)
			if c.name == "main" {
				files[c.file] += "\nfunc main() {}\n"
			}
			for name, text := range files {
				name = filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(program, "./...")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "PWD="+dir, "GOFLAGS=-mod=mod")
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if (err != nil) != (c.want != "") || !strings.Contains(string(out), c.want) {
				t.Errorf("error %v, output %q, want %q", err, out, c.want)
			}
		})
	}
}
