// Filter echo answers with what Envoy gave it. ../../README.md describes it.
export * from "@solo-io/proxy-runtime/proxy";
import { Context, FilterHeadersStatusValues, GrpcStatusValues, registerRootContext, send_local_response, stream_context } from "@solo-io/proxy-runtime";
import { BufferTypeValues, get_buffer_bytes, get_property } from "@solo-io/proxy-runtime/runtime";
import { environ_get, environ_sizes_get } from "bindings/wasi_unstable";
import { Plugin, Stream } from "../common/filter";

let vmConfiguration: ArrayBuffer = new ArrayBuffer(0);

class Echo extends Plugin {
  constructor(id: u32) {
    super(id, "echo");
  }

  createContext(id: u32): Context {
    return new EchoStream(id, this);
  }

  onStart(size: usize): bool {
    if (size > 0) {
      vmConfiguration = get_buffer_bytes(BufferTypeValues.VmConfiguration, 0, size as u32);
    }
    return true;
  }
}

class EchoStream extends Stream {
  onRequestHeaders(count: u32, end: bool): FilterHeadersStatusValues {
    let asked = stream_context.headers.request.get("x-echo");
    if (asked == "" || (asked != "any" && asked != String.UTF8.decode(property("plugin_name")))) {
      return FilterHeadersStatusValues.Continue;
    }
    let body = line("configuration", this.plugin().configuration) + line("vm-configuration", vmConfiguration);
    body += line("plugin_name", property("plugin_name"));
    body += line("plugin_root_id", property("plugin_root_id"));
    body += line("plugin_vm_id", property("plugin_vm_id")) + environment();
    send_local_response(200, "", String.UTF8.encode(body), [], GrpcStatusValues.Unknown);
    return FilterHeadersStatusValues.StopIteration;
  }
}

function property(name: string): ArrayBuffer {
  return get_property(name);
}

function line(name: string, value: ArrayBuffer): string {
  const digits = "0123456789abcdef";
  let text = name + " ";
  let bytes = Uint8Array.wrap(value);
  for (let index = 0; index < bytes.length; index++) {
    text += digits.charAt(bytes[index] >> 4) + digits.charAt(bytes[index] & 15);
  }
  return text + "\n";
}

// All variables as lines. This release of AssemblyScript has no other way to them than WASI itself.
function environment(): string {
  let sizes = new Uint32Array(2);
  environ_sizes_get(sizes.dataStart, sizes.dataStart + 4);
  let pointers = new Uint32Array(sizes[0]);
  let texts = new ArrayBuffer(sizes[1]);
  environ_get(pointers.dataStart, changetype<usize>(texts));
  let lines = "";
  for (let index = 0; index < pointers.length; index++) {
    let begin = pointers[index] - (changetype<usize>(texts) as u32);
    // Each variable ends with a NUL.
    let end = index + 1 < pointers.length ? pointers[index + 1] - (changetype<usize>(texts) as u32) : sizes[1];
    lines += line("environment", texts.slice(begin, end - 1));
  }
  return lines;
}

registerRootContext((id: u32) => new Echo(id), "echo");
