// What every step looks at in all of its tensors, as sweep.py tells it: one call for all of them.

#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstdint>
#include <vector>

namespace {

// What stands in the place of a form for values that have none.
constexpr std::int64_t kNoTensor = -1;
constexpr std::int64_t kNoMemory = -2;

bool is_dense(const at::Tensor& tensor) {
    return tensor.layout() == at::kStrided && tensor.has_storage();
}

void add_form(const at::Tensor& tensor, std::vector<std::int64_t>& to) {
    if (!is_dense(tensor)) {
        to.push_back(kNoMemory);
        to.push_back(reinterpret_cast<std::int64_t>(tensor.unsafeGetTensorImpl()));
        return;
    }
    to.push_back(reinterpret_cast<std::int64_t>(tensor.const_data_ptr()));
    const auto device = tensor.device();
    to.push_back(static_cast<std::int64_t>(tensor.scalar_type()) | static_cast<std::int64_t>(tensor.is_contiguous()) << 8 |
                 static_cast<std::int64_t>(device.type()) << 16 |
                 static_cast<std::int64_t>(static_cast<std::uint8_t>(device.index())) << 24 | tensor.dim() << 32);
    for (const auto size : tensor.sizes()) {
        to.push_back(size);
    }
}

PyObject* as_bytes(const std::vector<std::int64_t>& numbers) {
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(numbers.data()),
                                     static_cast<Py_ssize_t>(numbers.size() * sizeof(std::int64_t)));
}

const at::Tensor* tensor_at(PyObject* list, Py_ssize_t index) {
    PyObject* item = PyList_GET_ITEM(list, index);
    if (!THPVariable_Check(item)) {
        PyErr_Format(PyExc_TypeError, "item %zd is a %s, not a tensor", index, Py_TYPE(item)->tp_name);
        return nullptr;
    }
    return &THPVariable_Unpack(item);
}

bool is_list(PyObject* object) {
    if (!PyList_Check(object)) {
        PyErr_Format(PyExc_TypeError, "a list is wanted, not a %s", Py_TYPE(object)->tp_name);
        return false;
    }
    return true;
}

// Subclasses may have a `grad` of their own.
PyObject* gradient(PyObject* param) {
    if (!THPVariable_CheckExact(param)) {
        return PyObject_GetAttrString(param, "grad");
    }
    const at::Tensor& grad = THPVariable_Unpack(param).grad();
    if (!grad.defined()) {
        Py_RETURN_NONE;
    }
    return THPVariable_Wrap(grad);
}

PyObject* gradients(PyObject*, PyObject* params) {
    HANDLE_TH_ERRORS
    if (!is_list(params)) {
        return nullptr;
    }
    const Py_ssize_t count = PyList_GET_SIZE(params);
    PyObject* result = PyList_New(count);
    for (Py_ssize_t i = 0; result != nullptr && i < count; ++i) {
        PyObject* grad = gradient(PyList_GET_ITEM(params, i));
        if (grad == nullptr) {
            Py_CLEAR(result);
        } else {
            PyList_SET_ITEM(result, i, grad);
        }
    }
    return result;
    END_HANDLE_TH_ERRORS
}

PyObject* dtypes(PyObject*, PyObject* tensors) {
    HANDLE_TH_ERRORS
    if (!is_list(tensors)) {
        return nullptr;
    }
    const Py_ssize_t count = PyList_GET_SIZE(tensors);
    PyObject* result = PyList_New(count);
    for (Py_ssize_t i = 0; result != nullptr && i < count; ++i) {
        const at::Tensor* tensor = tensor_at(tensors, i);
        if (tensor == nullptr) {
            Py_CLEAR(result);
        } else {
            PyObject* dtype = reinterpret_cast<PyObject*>(torch::getTHPDtype(tensor->scalar_type()));
            Py_INCREF(dtype);
            PyList_SET_ITEM(result, i, dtype);
        }
    }
    return result;
    END_HANDLE_TH_ERRORS
}

PyObject* identities(PyObject*, PyObject* objects) {
    if (!is_list(objects)) {
        return nullptr;
    }
    PyListObject* list = reinterpret_cast<PyListObject*>(objects);
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(list->ob_item),
                                     PyList_GET_SIZE(objects) * static_cast<Py_ssize_t>(sizeof(PyObject*)));
}

PyObject* facts(PyObject*, PyObject* const* arguments, Py_ssize_t given) {
    HANDLE_TH_ERRORS
    if (given != 2) {
        PyErr_Format(PyExc_TypeError, "facts takes tensors and entries, not %zd arguments", given);
        return nullptr;
    }
    PyObject *tensors = arguments[0], *entries = arguments[1];
    if (!is_list(tensors) || !is_list(entries)) {
        return nullptr;
    }
    std::vector<std::int64_t> found;
    found.reserve(static_cast<std::size_t>(PyList_GET_SIZE(tensors) * 4 + PyList_GET_SIZE(entries) * 12));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); ++i) {
        const at::Tensor* tensor = tensor_at(tensors, i);
        if (tensor == nullptr) {
            return nullptr;
        }
        add_form(*tensor, found);
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(entries); ++i) {
        PyObject *entry = PyList_GET_ITEM(entries, i), *key = nullptr, *value = nullptr;
        if (!PyDict_Check(entry)) {
            PyErr_Format(PyExc_TypeError, "entry %zd is a %s, not a dict", i, Py_TYPE(entry)->tp_name);
            return nullptr;
        }
        Py_ssize_t position = 0;
        while (PyDict_Next(entry, &position, &key, &value)) {
            if (THPVariable_Check(value)) {
                add_form(THPVariable_Unpack(value), found);
            } else {
                found.push_back(kNoTensor);
            }
        }
    }
    return as_bytes(found);
    END_HANDLE_TH_ERRORS
}

PyObject* addresses(PyObject*, PyObject* tensors) {
    HANDLE_TH_ERRORS
    if (!is_list(tensors)) {
        return nullptr;
    }
    std::vector<std::int64_t> found;
    found.reserve(static_cast<std::size_t>(PyList_GET_SIZE(tensors)));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); ++i) {
        const at::Tensor* tensor = tensor_at(tensors, i);
        if (tensor == nullptr) {
            return nullptr;
        }
        if (!is_dense(*tensor) || !tensor->is_contiguous() || tensor->is_neg()) {
            Py_RETURN_NONE;
        }
        found.push_back(reinterpret_cast<std::int64_t>(tensor->const_data_ptr()));
    }
    return as_bytes(found);
    END_HANDLE_TH_ERRORS
}

PyObject* mark_changed(PyObject*, PyObject* tensors) {
    HANDLE_TH_ERRORS
    if (!is_list(tensors)) {
        return nullptr;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); ++i) {
        const at::Tensor* tensor = tensor_at(tensors, i);
        if (tensor == nullptr) {
            return nullptr;
        }
        if (!tensor->is_inference()) {
            tensor->unsafeGetTensorImpl()->bump_version();
        }
    }
    Py_RETURN_NONE;
    END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    {"gradients", gradients, METH_O, nullptr},
    {"dtypes", dtypes, METH_O, nullptr},
    {"identities", identities, METH_O, nullptr},
    {"facts", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(facts)), METH_FASTCALL, nullptr},
    {"addresses", addresses, METH_O, nullptr},
    {"mark_changed", mark_changed, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "sweep", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_sweep() { return PyModule_Create(&module); }
