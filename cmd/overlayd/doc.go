// Command overlayd is the daemon: it reads one configuration file, brings up the networks in it, and forwards
// until it is told to end.
//
//	overlayd --config /etc/overlayd/overlayd.yaml
//
// It stays in the foreground and logs to stderr: one line when it is ready, and nothing per packet. Under
// systemd, Type=notify and NotifyAccess=main fit: READY=1 is sent when every network forwards, STOPPING=1
// when the end begins. SIGTERM and SIGINT end it and leave the host as it was found; a second one ends it at
// once. The exit code is 0 after such an end, 1 when something failed, 2 when the command line or the file is
// at fault; the reason is then one line on stderr.
//
// Concurrency: package main starts one goroutine each for "vtep" (VTEP.Run), "api" (the local API) and
// "metrics" (if it is on), and joins them all; the first to fail ends the others. The packages that they run
// name the goroutines of their own.
//
// This command joins vtep and controlplane/api, which must not know each other. It must not import gopacket
// or anything of bench: the daemon is to stay small.
package main
