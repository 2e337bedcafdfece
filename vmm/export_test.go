package vmm

// RemoveAll is the function that deletes the directories of removed VMs.
var RemoveAll = &removeAll
