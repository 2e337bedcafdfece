package boot

import (
	"cmp"
	"fmt"
	"path"
	"strings"
)

// Root is a root file system whose files have names but no contents yet.
type Root interface {
	// Files returns the paths of the regular files in a directory and in those below it, from that
	// directory on. It returns nil if there is no such directory.
	Files(dir string) []string
	// Keep returns where the content of a regular file will be when the root has been written. It
	// stays empty if the file is too long.
	Keep(path string) *[]byte
}

// Kernel is the kernel of a root file system, with the modules that the guest loads before it
// mounts its root disk.
type Kernel struct {
	version string
	image   *[]byte
	modules map[string]*[]byte // by the names of their files, compressed or not
	builtin *[]byte            // modules.builtin, which lists the modules that need no file
}

// FindKernel returns the newest kernel of a root whose modules are there too, nil if there is none.
// Its contents are complete when the root has been written.
func FindKernel(root Root) *Kernel {
	version := ""
	for _, name := range root.Files("/boot") {
		v, ok := strings.CutPrefix(name, "vmlinuz-")
		if ok && v != "" && !strings.Contains(v, "/") && (version == "" || newer(v, version)) &&
			root.Files("/lib/modules/"+v) != nil {
			version = v
		}
	}
	if version == "" {
		return nil
	}
	k := &Kernel{version: version, modules: map[string]*[]byte{}}
	k.image = root.Keep("/boot/vmlinuz-" + version)
	wanted := map[string]bool{}
	for _, m := range ModuleNames {
		for _, f := range moduleForms {
			wanted[m+f.end] = true
		}
	}
	dir := "/lib/modules/" + version + "/"
	for _, name := range root.Files(dir) {
		if name == "modules.builtin" {
			k.builtin = root.Keep(dir + name)
		}
		if base := path.Base(name); wanted[base] {
			k.modules[base] = root.Keep(dir + name)
		}
	}
	return k
}

// newer reports whether version a is above b. It compares runs of digits by their values.
func newer(a, b string) bool {
	for a != "" && b != "" {
		an, bn := strings.TrimLeft(a, "0123456789"), strings.TrimLeft(b, "0123456789")
		x, y := strings.TrimLeft(a[:len(a)-len(an)], "0"), strings.TrimLeft(b[:len(b)-len(bn)], "0")
		if c := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); c != 0 {
			return c > 0
		}
		a, b = an, bn
		if a == "" || b == "" {
			break
		}
		if a[0] != b[0] {
			return a[0] > b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) > len(b)
}

// entries returns the unpacked modules that are no part of the kernel, and their list. The error
// says why the kernel cannot be used.
func (k *Kernel) entries() (entries []entry, err error) {
	if len(*k.image) == 0 {
		return nil, fmt.Errorf("/boot/vmlinuz-%s is empty or too long", k.version)
	}
	var modules []Module
	for _, m := range ModuleNames {
		b, err := k.module(m)
		if err != nil {
			return nil, err
		}
		if b != nil {
			modules = append(modules, Module{m, b})
		}
	}
	return moduleEntries(modules), nil
}

// module returns a module's unpacked content, nil if the module is a part of the kernel.
func (k *Kernel) module(name string) ([]byte, error) {
	for _, f := range moduleForms {
		if packed := k.modules[name+f.end]; packed != nil {
			b, err := unpackModule(name+f.end, *packed)
			return append([]byte{}, b...), err
		}
	}
	if k.isBuiltin(name) {
		return nil, nil
	}
	return nil, fmt.Errorf("kernel %s has no module %s.ko", k.version, name)
}

func (k *Kernel) isBuiltin(module string) bool {
	if k.builtin == nil {
		return false
	}
	for line := range strings.FieldsSeq(string(*k.builtin)) {
		if path.Base(line) == module+".ko" {
			return true
		}
	}
	return false
}
